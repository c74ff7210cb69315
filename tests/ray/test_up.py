"""``llmos up`` where it cannot: each time one message, and nothing left behind."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

import llmos
from llmos.control.ray.processes import listener
from llmos.files import read_json
from llmos.settings import state_dir
from tests.support import LLMOS, free_port, processes, words


def up(*options: object) -> subprocess.CompletedProcess[str]:
    command = [str(LLMOS), "up", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_twice_changes_nothing(cluster: llmos.Client) -> None:
    pid = cluster.status()["control"]["pid"]
    there = system()
    done = up()
    assert done.returncode == 0 and cluster.connection.url in done.stdout
    assert cluster.status()["control"]["pid"] == pid
    assert system() == there


def system() -> set[int]:
    """The processes of Ray itself: those titled ``ray::`` are its workers, which come and go."""
    return {process.pid for process in processes(Path.home()) if not any("ray::" in word for word in words(process))}


def test_it_does_not_move(cluster: llmos.Client) -> None:
    done = up("--port", 1234)
    assert done.returncode == 1
    assert f"is up already, with `--port {cluster.connection.url.rpartition(':')[2]}`, not `1234`" in done.stderr


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    return tmp_path / "elsewhere"


def nothing_began(elsewhere: Path, before: set[int]) -> bool:
    marked = [p for p in processes(Path.home()) if p.pid not in before and str(elsewhere) in " ".join(words(p))]
    return not marked and not (elsewhere / "cluster.json").exists()


def test_a_taken_port_and_who_has_it(cluster: llmos.Client, elsewhere: Path) -> None:
    before = {process.pid for process in processes(Path.home())}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"(pid {os.getpid()})" in listener(port)
        done = up("--port", port, "--state-dir", elsewhere)
    assert done.returncode == 1 and f"error: port {port} of 127.0.0.1 is taken by" in done.stderr
    assert "--port" in done.stderr and nothing_began(elsewhere, before)


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "nowhere", "host:port"])
def test_no_cluster_at_the_address(cluster: llmos.Client, elsewhere: Path, address: str) -> None:
    address = address.format(free_port())
    before = {process.pid for process in processes(Path.home())}
    done = up("--address", address, "--port", free_port(), "--state-dir", elsewhere)
    assert done.returncode == 1 and f"error: no Ray cluster at `{address}`" in done.stderr
    assert "Traceback" not in done.stderr and nothing_began(elsewhere, before)


def test_a_cluster_has_one_llmos(cluster: llmos.Client, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(state_dir(None) / "ray_token"))
    address = read_json(state_dir(None) / "cluster.json")["address"]
    done = up("--address", address, "--port", free_port(), "--state-dir", elsewhere)
    assert done.returncode == 1
    assert f"already runs on this cluster: its front door is {cluster.connection.url}" in done.stderr
    assert not (elsewhere / "cluster.json").exists()
    assert cluster.status()["control"]["pid"]
