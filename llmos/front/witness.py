"""What a replica has computed for whom: its own word on usage, which it tells with its heartbeats.

The front door counts a request when it has seen the end of its answer. A client that leaves before, or a front door
that is killed, leaves a request whose tokens only the replica knows. So a replica tells of all: at once of what did not
end well, and a little later, when it changes nothing in most cases, of what did.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from llmos.openai.caller import Caller
from llmos.usage import REPLICA, Record, Tokens

PATIENCE_S = 5.0
"""By then the front door has told of an answer that it has seen the end of."""
MOST = 1000
"""So many are told at once."""
MAX_KEPT = 50_000
"""While nobody can be told; then the oldest of those that ended well are dropped: the front door has them."""


class Witness:
    """The records of a replica of ``service``, which runs ``model``.

    ``clock`` gives seconds, ``wall`` seconds since 1970.
    """

    def __init__(
        self,
        service: str,
        model: str,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._service, self._model, self._clock, self._wall = service, model, clock, wall
        self._lock = threading.Lock()
        self._well: deque[tuple[float, Record]] = deque(maxlen=MAX_KEPT)
        self._others: deque[Record] = deque(maxlen=MAX_KEPT)

    def ended(self, caller: Caller, tokens: Tokens, status: int) -> None:
        """A request is over: ``tokens`` were computed for it."""
        whose = (caller.request_id, caller.key, caller.tenant, self._service, self._model)
        record = Record(*whose, *tokens, status=status, at=self._wall(), witness=REPLICA)
        with self._lock:
            if status == 200:
                self._well.append((self._clock(), record))
            else:
                self._others.append(record)

    def due(self) -> list[Record]:
        """What is to be told now; the same again until :meth:`told`."""
        before = self._clock() - PATIENCE_S
        with self._lock:
            found = [*self._others][:MOST]
            for ended_s, record in self._well:
                if ended_s > before or len(found) == MOST:
                    break
                found.append(record)
        return found

    def told(self, records: list[Record]) -> None:
        """The store has ``records``."""
        ids = {record.id for record in records}
        with self._lock:
            while self._others and self._others[0].id in ids:
                self._others.popleft()
            while self._well and self._well[0][1].id in ids:
                self._well.popleft()
