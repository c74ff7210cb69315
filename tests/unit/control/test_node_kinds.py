"""Which nodes a config lets the autoscaler start, and what Ray is asked for to have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from llmos.control import node_kinds
from llmos.core.types import NodeKind, Resources
from llmos.errors import ClusterError
from tests.support import ROOT

CONFIG = """
max_workers: 5
provider: {type: aws}
head_node_type: head
available_node_types:
    head: {resources: {CPU: 0}, max_workers: 0}
    gpu: {resources: {CPU: 8, GPU: 2, memory: 1000, object_store_memory: 9, disk: 3}, min_workers: 1, max_workers: 4}
    cpu: {resources: {CPU: 16}, labels: {llmos-kind: cpu, rack: 7}}
    off: {resources: {CPU: 16}, max_workers: 0}
    unknown: {min_workers: 0}
"""


def read(tmp_path: Path, text: str) -> node_kinds.NodeKinds:
    (tmp_path / "cluster.yaml").write_text(text)
    return node_kinds.read(tmp_path / "cluster.yaml")


def test_the_kinds_of_a_config_are_those_that_can_be_asked_for(tmp_path: Path) -> None:
    found = read(tmp_path, CONFIG)
    assert found.kinds == (
        NodeKind("gpu", Resources(8, 2, 1000, (("disk", 3.0),)), fewest=1, most=4),
        NodeKind("cpu", Resources(16), (("llmos-kind", "cpu"), ("rack", "7")), most=5),
    )


def test_no_more_is_asked_for_than_there_may_be_in_all(tmp_path: Path) -> None:
    found = read(tmp_path, CONFIG)
    gpu, cpu = {"CPU": 8.0, "GPU": 2.0, "disk": 3.0}, {"CPU": 16.0}
    labels = {"llmos-kind": "cpu", "rack": "7"}
    assert list(found.requests({"gpu": 1, "cpu": 2})) == [(gpu, {}), (cpu, labels), (cpu, labels)]
    assert list(found.requests({"gpu": 4, "cpu": 4})) == [(gpu, {})] * 4 + [(cpu, labels)]
    assert list(found.requests({})) == []


def test_the_config_that_we_ship_names_its_kinds() -> None:
    found = node_kinds.read(ROOT / "cluster.yaml")
    assert [(kind.name, kind.total.gpus, kind.fewest, kind.most) for kind in found.kinds] == [
        ("gpu", 4, 0, 8),
        ("gpu-large", 8, 0, 2),
    ]
    assert [dict(kind.labels)[node_kinds.KIND_LABEL] for kind in found.kinds] == ["gpu", "gpu-large"]


def test_local_nodes_are_one_kind_less_the_head(tmp_path: Path) -> None:
    config = node_kinds.local("127.0.0.1:1", 4, {"CPU": 2, "GPU": 1, "memory": 10**9}, tmp_path)
    found = read(tmp_path, json.dumps(config))
    (kind,) = found.kinds
    assert (kind.name, kind.total, kind.fewest, kind.most, found.most) == ("local", Resources(2, 1, 10**9), 0, 3, 3)
    assert len(list(found.requests({"local": 9}))) == 3


def test_a_cluster_without_autoscaling_has_no_kinds(tmp_path: Path) -> None:
    found = read(tmp_path, yaml.safe_dump({"max_workers": 0, "provider": {"type": "readonly"}}))
    assert found.kinds == () and list(found.requests({"gpu": 1})) == []


@pytest.mark.parametrize(
    "text", ["", "kind: TrainJob", "{", "- a", "{provider: {}, available_node_types: {a: {resources: {CPU: many}}}}"]
)
def test_what_is_no_config_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(ClusterError, match="cluster.yaml cannot be read: ") as refused:
        read(tmp_path, text)
    assert "\n" not in refused.value.message
    with pytest.raises(ClusterError, match="cannot be read: FileNotFoundError"):
        node_kinds.read(tmp_path / "missing.yaml")
