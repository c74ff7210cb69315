"""What ``llmos doctor`` finds, says and exits with."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from llmos import doctor
from llmos.core import capacity
from llmos.layout import Layout
from llmos.parallel import network
from llmos.parallel.network import Link, Network, Sum
from tests.unit.cli.conftest import Run


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / ".llmos")


def found(layout: Layout) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine(layout)}


def test_a_machine_that_has_all_of_it(llmos: Run, layout: Layout) -> None:
    told = json.loads(llmos("doctor", "-o", "json").out)
    names = ["python", "torch", "ray", "cpus", "gpus", "memory", "disk", "shared memory", "open files"]
    assert [one["name"] for one in told] == [*names, "state directory", "clock", "front door"]
    assert all(one["advice"] for one in told if one["status"] != "ok")
    assert {one["name"]: one["status"] for one in told}["torch"] == "ok"
    assert llmos("doctor").out.startswith("ok    python          3.1")
    assert not layout.root.exists()  # nothing is changed


def test_what_fails_says_what_to_do_and_exits_with_1(
    llmos: Run, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "memory_bytes", lambda: 2**29)
    monkeypatch.setattr(doctor, "version", lambda name: "1.0")
    monkeypatch.setattr(doctor, "SHM", Path("/nowhere/shm"))
    layout.root.mkdir(mode=0o755)
    layout.cluster.write_text('{"port": 1}')
    result, seen = llmos("doctor"), found(layout)
    assert result.code == 1
    assert {name for name, one in seen.items() if one.status == "fail"} == {"torch", "ray", "memory", "front door"}
    assert "fail  torch           1.0, expected " in result.out and "pip install 'torch" in result.out
    assert seen["front door"].advice == "`llmos down`, then `llmos up`."
    assert (seen["state directory"].status, seen["state directory"].advice) == ("warn", f"`chmod 700 {layout.root}`")
    assert seen["shared memory"].found == "there is no /nowhere/shm"


def test_a_port_that_is_taken_and_a_wrong_clock(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(doctor, "PORT", port)
        assert found(layout)["front door"].found == f"127.0.0.1:{port} is taken"
    monkeypatch.setattr(doctor.time, "time", lambda: 1e9)
    assert found(layout)["clock"].status == "fail"
    monkeypatch.setattr(doctor.time, "time", lambda: 4e9)
    assert "before that of" in found(layout)["clock"].found


def test_the_network_is_told_against_its_model_and_saved(
    llmos: Run, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = [Sum(size, 1e-4 + size / 1e9) for size in (1000, 10**6, 10**7)]
    links = [Link(0, 1, 1e9), Link(0, 2, 1e9), Link(1, 2, 1e8)]
    asked: list[int] = []

    def measure(ranks: int) -> Any:
        asked.append(ranks)
        return Network.of(2, "gloo", sums, links)

    monkeypatch.setattr(network, "measure_here", measure)
    told = llmos("doctor", "--network", "--ranks", "3", "--save")
    assert told.code == 0 and asked == [3]
    assert told.out.splitlines()[1].split() == [
        "1.0",
        "kB",
        "101",
        "µs",
        "9.9",
        "MB/s",
        "9.9",
        "MB/s",
        "101",
        "µs",
        "1.00",
    ]
    assert "100 µs + 2(n-1)/n · bytes / 1" in told.err and "fits best" in told.err
    assert "slow: ranks 1 and 2, 100.0 MB/s" in told.err
    saved = json.loads(layout.calibration.read_text())["CPU"]
    assert saved["all_reduce_bandwidth"] == pytest.approx(1e9)
    assert capacity.calibrated(capacity.hardware("CPU"), saved).intra_bandwidth == pytest.approx(1e9)
    view = json.loads(llmos("doctor", "--network", "-o", "json").out)
    assert asked == [3, 2] and view["sums"][0]["ratio"] == pytest.approx(1)
    assert [link["slow"] for link in view["links"]] == [False, False, True]
    wrong = llmos("doctor", "--network", "--ranks", "1")
    assert wrong.code == 2 and "`--ranks 1`: expected at least 2" in wrong.err


def test_the_network_of_a_cluster_is_measured_by_a_job(llmos: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def measure(ranks: int, gpus: int) -> Network:
        asked.append((ranks, gpus))
        return Network.of(2, "nccl", [Sum(1000, 1e-4), Sum(10**6, 2e-3)], [Link(0, 1, 1e9)])

    monkeypatch.setattr(doctor, "measure_cluster", measure)
    told = llmos("doctor", "--network", "--cluster", "--ranks", "4", "--gpus", "1")
    assert told.code == 0 and asked == [(4, 1)] and "between 4 workers" in told.err
    assert llmos("doctor", "--network", "--cluster").code == 0 and asked[1] == (2, 0)
    wrong = llmos("doctor", "--cluster")
    assert wrong.code == 2 and "`--cluster` measures the network" in wrong.err
