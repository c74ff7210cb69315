"""Where requests wait for a service that nobody can answer for: it is at zero replicas, or its only one is replaced.

So many may wait, each for so long; when somebody can answer they go in by turns, so that a replica that has just
started is not met by all of them at once.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable

from llmos.errors import CapacityError, UnavailableError

MOST = 256
"""So many requests are held for one service; others are refused at once."""
PATIENCE_S = 180.0
TELL_EVERY_S = 2.0
"""A stream that waits is told so often how long it has waited; proxies give up on a silent one."""
HERD = 32
"""So many go in at once for each replica that answers; the next when the front door looks again."""


class WaitingRoom:
    """The requests that wait, by service, first come, first served. ``clock`` gives seconds."""

    def __init__(
        self,
        *,
        most: int = MOST,
        patience_s: float = PATIENCE_S,
        every_s: float = TELL_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._patience_s, self._every_s, self._clock = most, patience_s, every_s, clock
        self._turns: dict[str, deque[asyncio.Future[None]]] = {}

    def held(self) -> dict[str, int]:
        """How many wait for each service."""
        return {service: len(turns) for service, turns in self._turns.items()}

    def admit(self, service: str, replicas: int) -> None:
        """So many ``replicas`` can answer now: let the next in."""
        turns = self._turns.get(service, deque())
        for _ in range(min(len(turns), replicas * HERD)):
            turn = turns.popleft()
            if not turn.done():
                turn.set_result(None)
        if not turns:
            self._turns.pop(service, None)

    async def wait(self, service: str, first: Callable[[], None] = lambda: None) -> AsyncGenerator[float, None]:
        """Ends when it is this request's turn; until then it gives the seconds that have passed, again and again.

        Calls ``first`` if nobody else waits for the service.

        Raises CapacityError when too many wait already, UnavailableError when it has lasted too long.
        """
        turns = self._turns.setdefault(service, deque())
        if len(turns) >= self._most:
            raise CapacityError(
                f"{self._most} requests wait for `{service}` to start: no more are held",
                hint="Ask again when it has started.",
                retry_after_s=5.0,
            )
        turn, began_s = asyncio.get_running_loop().create_future(), self._clock()
        turns.append(turn)
        if len(turns) == 1:
            first()
        try:
            while not turn.done():
                left_s = self._patience_s - (self._clock() - began_s)
                if left_s <= 0:
                    raise UnavailableError(
                        f"`{service}` has not started in {self._patience_s:.0f} s",
                        hint="`llmos services` says what it waits for.",
                        retry_after_s=10.0,
                    )
                await asyncio.wait([turn], timeout=min(self._every_s, left_s))
                if not turn.done():
                    yield self._clock() - began_s
        finally:
            self._leave(service, turn)

    def _leave(self, service: str, turn: asyncio.Future[None]) -> None:
        turns = self._turns.get(service)
        if turns and turn in turns:
            turns.remove(turn)
        if not turns:
            self._turns.pop(service, None)


def progress(service: str, waited_s: float) -> bytes:
    """A comment in a stream of server-sent events, which every client skips: why nothing has come yet."""
    told = json.dumps({"waiting_for": service, "waited_s": round(waited_s, 1)})
    return f": {told}\n\n".encode()
