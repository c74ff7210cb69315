"""What Ray's autoscaler is asked for. No cluster needed: what it would hear is written down."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RpcError

from llmos.control.ray import fleet
from llmos.control.ray.fleet import RayFleet
from llmos.errors import ClusterError

CONFIG = """
max_workers: {most}
provider: {{type: external}}
head_node_type: head
available_node_types:
    head: {{resources: {{CPU: 1}}, max_workers: 0}}
    gpu: {{resources: {{CPU: 8, GPU: 2, memory: 1000}}, labels: {{llmos-kind: gpu}}}}
"""
ONE = {"CPU": 8.0, "GPU": 2.0}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "autoscaling.yaml"
    path.write_text(CONFIG.format(most=3))
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(fleet, "request_resources", lambda **what: calls.append(what))
    return calls


def test_a_node_is_asked_for_whole_and_by_its_label(config: Path, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    found = RayFleet(config, tmp_path / "monitor.log")
    assert [(kind.name, kind.most) for kind in found.kinds()] == [("gpu", 3)]
    for wanted in ({"gpu": 2}, {"gpu": 2}, {"gpu": 9}, {"gpu": 0}):
        found.scale(wanted)
    expected = [2, 2, 3, 0]
    assert [call["bundles"] for call in asked] == [[ONE] * count for count in expected]
    assert [call["bundle_label_selectors"] for call in asked] == [[{"llmos-kind": "gpu"}] * n for n in expected]


def test_a_config_that_changes_is_read_again_and_one_that_breaks_is_not(config: Path, tmp_path: Path) -> None:
    found = RayFleet(config, tmp_path / "monitor.log")
    found.kinds()
    for text, most in ((CONFIG.format(most=5), 5), ("{", 5), (CONFIG.format(most=7), 7)):
        config.write_text(text)
        os.utime(config, ns=(1, most * 10**9 + len(text)))
        assert [kind.most for kind in found.kinds()] == [most]
    config.unlink()
    assert [kind.most for kind in found.kinds()] == [7]


def test_nothing_is_asked_for_while_no_kind_is_known(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    found = RayFleet(tmp_path / "missing.yaml", tmp_path / "monitor.log")
    assert found.kinds() == ()
    found.scale({})
    assert asked == []


def test_an_autoscaler_that_cannot_be_asked_is_a_cluster_error(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def away(**_what: Any) -> None:
        raise RpcError("the GCS is away\nand so on")

    monkeypatch.setattr(fleet, "request_resources", away)
    found = RayFleet(config, tmp_path / "monitor.log")
    found.kinds()
    with pytest.raises(ClusterError, match=r"cannot be asked for nodes: the GCS is away$"):
        found.scale({"gpu": 1})
