"""What tests need that start real processes: ports, and an eye on who is still there."""

from __future__ import annotations

import socket
from pathlib import Path

import psutil


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


def end(home: Path) -> None:
    """Kill what ``processes`` finds, until it finds nothing."""
    while left := processes(home):
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=5)
