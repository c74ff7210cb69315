"""The replicas that answer now, as they say themselves. In memory only: who is there says so again within a second."""

from __future__ import annotations

import time
from collections.abc import Callable

from llmos.heartbeat import BEAT_S, FORGET_S, Heartbeat


class ReplicaTable:
    """Keeps the newest heartbeat of each replica for FORGET_S. Methods may be called from any thread.

    ``clock`` gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = self._awake_s = clock()
        self._heard: dict[str, tuple[float, Heartbeat]] = {}

    @property
    def complete(self) -> bool:
        """Whether everybody who is there has had the time to say so."""
        return self._clock() - self._began_s > FORGET_S

    def heard(self, beat: Heartbeat) -> None:
        """A replica has spoken."""
        self._wake()
        self._heard[beat.replica] = self._clock(), beat

    def left(self, replica: str) -> None:
        """A replica has said that it ends."""
        self._heard.pop(replica, None)

    def all(self) -> list[Heartbeat]:
        """Those who have spoken lately, in a fixed order. To be asked before :attr:`complete` is."""
        self._wake()
        oldest_s = self._clock() - FORGET_S
        for replica, (at_s, _) in list(self._heard.items()):
            if at_s < oldest_s:
                self._heard.pop(replica, None)
        return [beat for _, (_, beat) in sorted(self._heard.items())]

    def _wake(self) -> None:
        """Whoever was not awake to hear replicas does not know who is silent: everybody has the time to speak again."""
        now = self._clock()
        if now - self._awake_s > FORGET_S - 2 * BEAT_S:
            self._began_s = now
        self._awake_s = now
