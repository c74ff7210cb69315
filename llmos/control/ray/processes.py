"""Operating-system processes that llmos started: remembering, finding and ending them. Never anybody else's."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

TERM_GRACE_S = 15.0
KILL_GRACE_S = 5.0
MARKER = "LLMOS_SESSION"
"""The environment variable that every process of a cluster started here has: children inherit it."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process by pid and start, so that a reused pid is not mistaken for it.

    The start is the boot's id and clock ticks since then: unlike a time of day, setting the clock does not change it.
    """

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Process:
        return cls(pid, _start(pid))

    def find(self) -> psutil.Process | None:
        """The process, if it still runs."""
        with contextlib.suppress(psutil.NoSuchProcess, OSError):
            found = psutil.Process(self.pid)
            if _start(self.pid) == self.started and found.status() != psutil.STATUS_ZOMBIE:
                return found
        return None


def _start(pid: int) -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name before may hold anything
    return f"{boot} {fields[19]}"


def family(process: Process) -> list[psutil.Process]:
    """The process and everything it started, parents first; empty if it is gone."""
    found = process.find()
    if found is None:
        return []
    try:
        return [found, *found.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end(process: Process, marker: str = "") -> int:
    """End a process and all it started: SIGTERM to it, then SIGKILL to whoever is left. Returns how many were killed.

    ``marker`` finds members that have lost their parent: processes whose environment has it as MARKER.
    """
    members = family(process)
    if members:
        with contextlib.suppress(psutil.NoSuchProcess):
            members[0].terminate()
        _, members = psutil.wait_procs(members, timeout=TERM_GRACE_S)
    left = {member.pid: member for member in [*members, *(_marked(marker) if marker else ())]}
    for member in left.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(list(left.values()), timeout=KILL_GRACE_S)
    return len(left)


def _marked(marker: str) -> Iterator[psutil.Process]:
    """The processes of the cluster that was started with ``marker`` in its environment."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # somebody else's, or over
            if process.environ().get(MARKER) == marker:
                yield process


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def listener(port: int) -> str:
    """Who listens on a port, for people: `python (pid 123)`, or the empty string if that cannot be told."""
    with contextlib.suppress(psutil.Error):
        for process in _owners(port, psutil.net_connections("tcp")):
            return f"{process.name()} (pid {process.pid})"
    return ""


def _owners(port: int, connections: Iterable[psutil._ntuples.sconn]) -> Iterator[psutil.Process]:
    for connection in connections:
        if (
            connection.status == psutil.CONN_LISTEN
            and connection.laddr
            and connection.laddr.port == port
            and connection.pid
        ):
            yield psutil.Process(connection.pid)
