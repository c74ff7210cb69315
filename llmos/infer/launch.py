"""The processes of the ranks of one engine: what is asked of them, and how they are started on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from llmos.cores import usable_cores
from llmos.infer.wire import Meeting


class Process(Protocol):
    """A rank's process, wherever it is; ``subprocess.Popen`` is one."""

    def poll(self) -> int | None:
        """How it ended; None while it runs."""
        ...

    def kill(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int:
        """Raises an error when it has not ended in time."""
        ...


Launch = Callable[[Meeting], Sequence[Process]]
"""Starts ``meeting.ranks`` processes that call :func:`llmos.infer.rank.serve`, each with its number."""


def launch_here(meeting: Meeting) -> list[subprocess.Popen[bytes]]:
    """On this machine, each rank on its share of the cores: woken at once, two may land on one and wait there."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if meeting.host == "127.0.0.1":
        environment |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    cores, processes = usable_cores(), []
    share = len(cores) // meeting.ranks
    for number in range(meeting.ranks):
        command = [sys.executable, "-m", "llmos.infer.rank"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
        told = {"host": meeting.host, "port": meeting.port, "secret": meeting.secret.hex(), "ranks": meeting.ranks}
        assert process.stdin is not None
        mine = cores[number * share : (number + 1) * share] or cores
        process.stdin.write(json.dumps({**told, "number": number, "cores": mine}).encode() + b"\n")
        process.stdin.close()
        processes.append(process)
    return processes
