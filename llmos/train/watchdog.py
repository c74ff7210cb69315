"""Notices on every rank that no step ends any more, leaves the stacks of all ranks behind, and ends the process.

Whatever started the ranks sees processes that are gone, and the cause that they have left: another attempt may follow.
"""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import socket
import threading
import time
from collections import deque
from pathlib import Path

from llmos.layout import AttemptDirs
from llmos.parallel.world import World
from llmos.spec import Watchdog as Policy
from llmos.train import cause, hang
from llmos.train.limits import step_limit_s

_REARM_S = 1.0
"""How often faulthandler's timer is set anew at most: that starts a thread each time."""
_POLL_S = 0.25
_OTHERS_S = 5.0
_OTHERS_SHARE = 0.05
"""How long to wait for the stacks of other ranks, whose clocks ran a little differently, and a share of the limit."""
_FREED_S = 3.0
"""What the thread that trains has for ending by itself, once others have ended: it may be able to say more."""

log = logging.getLogger("llmos.train")


class Watchdog:
    """Watches the thread that makes it, until :meth:`close`.

    The stacks are taken by faulthandler's timer, which needs no interpreter lock: also those of a rank that hangs in
    C code which holds it. They lie in ``attempt``.
    """

    def __init__(self, policy: Policy, world: World, attempt: AttemptDirs) -> None:
        self._policy, self._attempt, self._rank, self._size = policy, attempt, world.rank, world.size
        self._steps_s: deque[float] = deque(maxlen=64)
        attempt.stack(world.rank).parent.mkdir(parents=True, exist_ok=True)
        self._file = attempt.stack(world.rank).open("w")
        self._header = f"{socket.gethostname()} 0x{threading.get_ident():016x}\n"
        self._armed_s, self._limit_s = float("-inf"), 0.0
        self.alive()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def step_ended(self, step_s: float) -> None:
        """A step has ended, which took ``step_s``."""
        self._steps_s.append(step_s)
        self.alive()

    def alive(self) -> None:
        """Something that takes its time, but is no step, has begun, has ended, or has come on."""
        self._alive_s = time.monotonic()
        if self._alive_s - self._armed_s < _REARM_S:
            return
        self._limit_s = step_limit_s(self._policy.timeout, self._steps_s)
        self._file.seek(0)
        self._file.truncate()
        self._file.write(self._header)
        self._file.flush()
        # later than the limit by what may pass until it is set anew
        faulthandler.dump_traceback_later(self._limit_s + _REARM_S, file=self._file)
        self._armed_s = self._alive_s

    def close(self) -> None:
        """Stop watching. Call it on the thread that is watched."""
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()
        self._thread.join()
        self._file.close()

    def _watch(self) -> None:
        while not self._closed.wait(_POLL_S):
            if self._waited_s > self._limit_s + _REARM_S and self._is_hanging():
                self._end()
                return

    @property
    def _waited_s(self) -> float:
        return time.monotonic() - self._alive_s

    def _is_hanging(self) -> bool:
        """Leave the report as the cause of the end, once all ranks' stacks are there. Whether it is still needed."""
        before_s, until_s = self._alive_s, time.monotonic() + _OTHERS_S + _OTHERS_SHARE * self._limit_s
        found = self._stacks()
        while None in found.values() and time.monotonic() < until_s and not self._closed.wait(_POLL_S):
            found = self._stacks()
        if self._alive_s != before_s or self._closed.is_set():
            return False
        cause.leave(self._attempt.cause, hang.report(self._limit_s, found))
        return True

    def _stacks(self) -> dict[int, hang.Stacks | None]:
        return {rank: _read(self._attempt.stack(rank)) for rank in range(self._size)}

    def _end(self) -> None:
        """End this process; on rank 0, which others look at, not before it had time to see them go."""
        if self._rank == 0:
            if self._closed.wait(_FREED_S):
                return
            log.error("error: %s", cause.left(self._attempt.cause))
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(1)  # the thread that trains may be in C code: nothing else reaches it


def _read(path: Path) -> hang.Stacks | None:
    try:
        return hang.parse(path.read_text(errors="replace"))
    except OSError:
        return None
