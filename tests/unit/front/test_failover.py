"""How soon a request that had no byte of its answer is at another replica when the one that has it is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from llmos.front.fleet import News
from llmos.heartbeat import Heartbeat, Route
from tests.unit.front.test_relay import ANSWER, PATH
from tests.unit.front.world import BODY, Door, Replica, door, replicas

TIMES = 9
MOST_S = 0.050
"""What the front door may take over what a request takes to reach a replica on this machine anyway."""
_SILENT = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
while connection.recv(65536):
    print("asked", flush=True)
"""


@contextmanager
def silent(name: str) -> Iterator[tuple[Heartbeat, subprocess.Popen[str]]]:
    """A replica in a process of its own that takes a request and says nothing."""
    process = subprocess.Popen([sys.executable, "-S", "-c", _SILENT], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Heartbeat("m", "1", name, f"http://127.0.0.1:{int(process.stdout.readline())}"), process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def plainly_s(one: Door, other: Replica) -> float:
    """From asking to the request's arrival at ``other``, when nobody dies."""
    began_s = time.monotonic()
    assert (await one.client.post(PATH, json=BODY)).status_code == 200
    return other.arrivals[-1] - began_s


async def killed_s(one: Door, process: subprocess.Popen[str], other: Replica) -> float:
    """From SIGKILL of the replica that has the request to its arrival at ``other``."""
    before = len(other.arrivals)
    asked = asyncio.create_task(one.client.post(PATH, json=BODY))
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline) == "asked\n"
    died_s = time.monotonic()
    os.kill(process.pid, signal.SIGKILL)
    assert (await asked).status_code == 200 and len(other.arrivals) == before + 1
    return other.arrivals[-1] - died_s


async def test_a_killed_replicas_request_is_at_another_one_within_50_ms() -> None:
    with ExitStack() as stack, replicas(ANSWER) as (other,):
        dying = [stack.enter_context(silent(f"dying {n}")) for n in range(TIMES)]
        async with door(replace(other.beat, waiting=9)) as one:
            plain = [await plainly_s(one, other) for _ in range(TIMES)]
            killed = []
            for beat, process in dying:
                one.fleet.learn(News({"m": Route(7)}, [beat, other.beat]))
                one.fleet.suspect("r0")  # so that the one that is going to die is asked first
                killed.append(await killed_s(one, process, other))
    floor_s, took_s = statistics.median(plain), statistics.median(killed)
    figures = f"{1e3 * took_s:.1f} ms after the kill (median of {TIMES}; a request takes {1e3 * floor_s:.1f} ms)"
    print(f"at another replica {figures}, at most {1e3 * max(killed):.1f} ms")
    assert took_s - floor_s < MOST_S, figures
