"""How a replica tells the control module, every second, that it is there and how it is doing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from llmos.control.ray.session import CONTROL, NAMESPACE
from llmos.errors import LlmosError
from llmos.front.witness import Witness
from llmos.heartbeat import BEAT_S, Heartbeat

STALL_S = 12.0
"""Whoever waits for a replica that hangs knows within 15 s: until then it is told, fetched and looked at."""
_TELL_TIMEOUT_S = 2.0

_log = logging.getLogger("llmos.front")


class Heart:
    """Tells what ``beat`` returns and what ``witness`` has seen, in a thread, from :meth:`start` to :meth:`end`."""

    def __init__(self, replica: str, beat: Callable[[], Heartbeat], witness: Witness) -> None:
        self._replica, self._beat, self._witness = replica, beat, witness
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="llmos-heart", daemon=True)
        self._control: Any = None

    def start(self) -> None:
        """Say that the replica is there before this returns, and go on saying it."""
        self.beat()
        if self._thread.ident is None:
            self._thread.start()

    def beat(self) -> None:
        """Say now how it is. What cannot be told is told a second later."""
        self._tell("heartbeat", self._beat())
        self._testify()

    def end(self) -> None:
        """Say that it is there no more."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
            self._testify()
            self._tell("left", self._replica)

    def _run(self) -> None:
        while not self._over.wait(BEAT_S):
            self.beat()

    def _testify(self) -> None:
        """Have what requests have used counted."""
        records = self._witness.due()
        if records and self._tell("record_usage", [one.fields for one in records]):
            self._witness.told(records)

    def _tell(self, method: str, what: object) -> bool:
        """Whether the control module was told, and has nothing against it."""
        try:
            if self._control is None:
                self._control = ray.get_actor(CONTROL, NAMESPACE)
            answer = ray.get(getattr(self._control, method).remote(what), timeout=_TELL_TIMEOUT_S)
            if isinstance(answer, LlmosError):
                raise answer
            return True
        except (ValueError, RayError, LlmosError) as error:
            self._control = None  # it is being restarted, or another one is to be found
            _log.info("the control module could not be told of this replica: %s", error)
            return False


class Progress:
    """Whether an engine does nothing although it is asked. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._steps, self._moved_s = -1, clock()

    def stalled(self, stats: Mapping[str, Any]) -> bool:
        """Whether requests run and no step has ended for STALL_S, or for as long as one may take if that is longer, by
        what the engine says of itself. One that counts no steps is only asked whether it is healthy."""
        steps, idle = stats.get("steps", -1), not stats["running"] + stats["waiting"]
        if steps < 0 or steps != self._steps or idle:
            self._steps, self._moved_s = steps, self._clock()
        return self._clock() - self._moved_s > max(STALL_S, float(stats.get("step_limit_s", 0.0)))
