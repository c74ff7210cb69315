"""What tests need that start real processes: a cluster, a small job, ports, and an eye on who is still there."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import llmos
from llmos.settings import connection

ROOT = Path(__file__).parents[1]
LLMOS = Path(sys.executable).with_name("llmos")


@contextmanager
def running_cluster(home: Path, *options: str) -> Iterator[llmos.Client]:
    """A cluster that ``llmos up`` with ``options`` started for a user at ``home``; ``down`` must leave nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("LLMOS_STATE_DIR", str(home / "state"))
        for name in ("RAY_ADDRESS", "LLMOS_URL", "LLMOS_API_KEY"):
            patch.delenv(name, raising=False)
        try:
            subprocess.run([LLMOS, "up", "--port", str(free_port()), *options], check=True)
            with llmos.Client.of(connection()) as client:
                yield client
            subprocess.run([LLMOS, "down"], check=True)
            assert [words(process) for process in processes(home)] == []
        finally:
            end(home)


def nano(name: str, workers: int, steps: int, **fields: Any) -> llmos.TrainJob:
    """A job that trains the smallest preset on a few files of ours."""
    return llmos.TrainJob(
        name=name,
        model=llmos.ModelSource(preset="nano"),
        data=llmos.Data(path=(str(ROOT / "llmos" / "core" / "*.py"),), vocab_size=320),
        mesh=llmos.Mesh(dp=workers),
        steps=steps,
        batch_size=4,
        sequence_length=64,
        output=llmos.Output(model=name),
        **fields,
    )


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listened on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes(home: Path) -> list[psutil.Process]:
    """Every living process whose environment has HOME at ``home``: all that a test started with that home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue  # another user's, or over
    return found


def words(process: psutil.Process) -> list[str]:
    """Its command line; empty if it has just ended."""
    with suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def listening(home: Path) -> set[str]:
    """The addresses on which processes of ``home`` listen."""
    found: set[str] = set()
    for process in processes(home):
        with suppress(psutil.NoSuchProcess):  # has just ended
            connections = process.net_connections()
            found |= {str(c.laddr.ip) for c in connections if c.status == psutil.CONN_LISTEN and c.laddr}
    return found


def end(home: Path) -> None:
    """Kill what ``processes`` finds, until it finds nothing."""
    while left := processes(home):
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=5)
