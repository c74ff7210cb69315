"""The processes of the ranks of one engine: what is asked of them, and how they are started on this machine.

Nothing here needs torch: who starts ranks need not be who computes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llmos.cores import usable_cores


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where ``ranks`` ranks meet the engine's process. ``secret`` has 32 bytes, which no log and no argument shows."""

    host: str
    port: int
    secret: bytes = field(repr=False)
    ranks: int


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


class Gang(Protocol):
    """Ranks that somebody else places, on one machine or on several.

    ``host`` is where all of them reach this one. Whoever made the engine calls ``launch``, in its own process, and
    kills the ranks when the engine's process has ended, however that was.
    """

    host: str

    def launch(self, meeting: Meeting) -> Sequence[Process]:
        """See :data:`Launch`."""
        ...


def launch_here(meeting: Meeting) -> list[subprocess.Popen[bytes]]:
    """On this machine, each rank on its share of the cores: woken at once, two may land on one and wait there."""
    environment, cores, processes = {**os.environ, "OMP_NUM_THREADS": "1"}, usable_cores(), []
    for number in range(meeting.ranks):
        command = [sys.executable, "-m", "llmos.infer.rank"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
        told = {"host": meeting.host, "port": meeting.port, "secret": meeting.secret.hex(), "ranks": meeting.ranks}
        assert process.stdin is not None
        mine = core_share(cores, number, meeting.ranks)
        process.stdin.write(json.dumps({**told, "number": number, "cores": mine}).encode() + b"\n")
        process.stdin.close()
        processes.append(process)
    return processes


def core_share(cores: Sequence[int], index: int, parts: int) -> Sequence[int]:
    """Those of ``cores`` that are for rank ``index`` of the ``parts`` on a machine; all, if there are fewer cores."""
    share = len(cores) // parts
    return cores[index * share : (index + 1) * share] or cores


def neighbours(nodes: Sequence[str]) -> list[tuple[int, int]]:
    """For each rank, of which ``nodes`` has the machine: which of the ranks there it is, and how many there are."""
    return [(nodes[:number].count(node), nodes.count(node)) for number, node in enumerate(nodes)]
