"""How many replicas each service should have now, from what is measured of it.

What is asked of a service comes from the front door, which counts the requests that arrive and holds those that nobody
can answer yet, and from the heartbeats of its replicas. :mod:`llmos.core.replicas` makes a number of it. Nothing of it
is stored: after a restart the number that is deployed counts until the load is known again.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from llmos.control.load import Load
from llmos.core.replicas import Promises, Scale, scale
from llmos.heartbeat import Heartbeat
from llmos.spec import Service, Slo

START_S = 30.0
"""What a cold start is taken to last until one was measured."""
HEARD_S = 5.0
"""What a replica or the front door has said counts for so long."""


@dataclass(slots=True)
class _State:
    """What is known of one service. ``asked_at`` is when it was last needed, ``waking_at`` since when it is waited for
    at zero replicas, ``held`` requests at the front door that wait for that."""

    asked_at: float = -math.inf
    waking_at: float | None = None
    wake_s: float | None = None
    held: int = 0
    held_at: float = -math.inf
    scale: Scale | None = None
    load: Load = field(default_factory=Load)
    beats: dict[str, tuple[float, int, int]] = field(default_factory=dict)  # when, running, waiting


class Scaling:
    """The number of replicas of every service. Methods may be called from any thread; ``clock`` gives seconds since the
    epoch, as ``now`` does."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._began_at = clock()
        self._states: dict[str, _State] = {}
        self._lock = threading.Lock()

    def heard(self, beat: Heartbeat) -> bool:
        """A replica has spoken. Whether it is the one that a service at zero has waited for."""
        with self._lock:
            state, now = self._state(beat.service), self._clock()
            state.beats[beat.replica] = now, beat.running, beat.waiting
            if state.load.count("tokens", beat.replica, beat.tokens) or beat.running or beat.waiting:
                state.asked_at = now
            if state.waking_at is None:
                return False
            state.wake_s, state.waking_at = now - state.waking_at, None
            return True

    def demand(self, door: str, asked: Mapping[str, tuple[int, int]]) -> bool:
        """The front door ``door`` tells of each service how many requests have arrived there so far, and how many it
        holds until somebody can answer. Whether a service is to be started for them."""
        with self._lock:
            now = self._clock()
            asleep = [self._demand(door, name, arrived, held, now) for name, (arrived, held) in asked.items()]
            return any(asleep)

    def _demand(self, door: str, name: str, arrived: int, held: int, now: float) -> bool:
        state = self._state(name)
        state.held, state.held_at = held, now
        if state.load.count("arrived", door, arrived) or held:
            state.asked_at = now
        asleep = held > 0 and state.waking_at is None and not self._heard(state, now)
        if asleep:
            state.waking_at = now
        return asleep

    def count(self, name: str, spec: Service, deployed: int, ready: int, now: float) -> tuple[int, str]:
        """The replicas that the service ``name`` should have now, and why, where there is more to say than its spec
        does. So many are ``deployed`` and ``ready``."""
        bounds = spec.replicas
        if bounds.min == bounds.max:
            return bounds.min, ""
        with self._lock:
            state = self._state(name)
            beats = self._heard(state, now)
            held = state.held if now - state.held_at < HEARD_S else 0
            running, waiting = sum(one[1] for one in beats), sum(one[2] for one in beats) + held
            state.load.sample(now, running, waiting, len(beats) or ready)
            idle_s = now - max(state.asked_at, self._began_at if deployed else -math.inf)
            if bounds.min == 0 and idle_s >= spec.idle_s:
                state.scale = None
                return 0, "at zero until a request comes" + (f": idle for {idle_s:.0f} s" if deployed else "")
            low = max(bounds.min, 1)
            before = state.scale or Scale(max(deployed, low))
            rates = state.load.rates(spec.max_batch, state.wake_s or START_S)
            promises, traffic = _promises(spec.slo), state.load.traffic()
            state.scale = scale((low, bounds.max), promises, traffic, rates, before, now)
            return state.scale.count, state.scale.why

    def wake_s(self, name: str) -> float | None:
        """What the last start from zero took: from the request that was held until a replica answered."""
        with self._lock:
            return self._state(name).wake_s

    def forget(self, others: Collection[str]) -> None:
        """Only ``others`` exist."""
        with self._lock:
            self._states = {name: state for name, state in self._states.items() if name in others}

    def _state(self, name: str) -> _State:
        return self._states.setdefault(name, _State())

    def _heard(self, state: _State, now: float) -> list[tuple[float, int, int]]:
        """What the replicas that have spoken lately have said; the others are forgotten."""
        for replica, (at, _, _) in list(state.beats.items()):
            if now - at > HEARD_S:
                del state.beats[replica]
                state.load.forget(replica)
        return list(state.beats.values())


def _promises(slo: Slo) -> Promises:
    return Promises(*(math.inf if one is None else one for one in (slo.first_token_s, slo.token_s, slo.queue_s)))
