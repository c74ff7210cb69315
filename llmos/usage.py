"""A request that is over and what it used: told by whoever saw it, counted once in the store."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import NamedTuple, Self

CLIENT_GONE = 499
"""The status of a request whose client left before the answer was complete (nginx's convention)."""
GUESSED, REPLICA, FRONT_DOOR = 0, 1, 2
"""Witnesses. The front door has seen a request's end; a replica knows what it has computed, also for a client that left
or for a front door that was killed; and when the replica is gone, what came of it is all that can be said."""


class Tokens(NamedTuple):
    """``prompt`` tokens, of which ``cached`` were not computed again, and ``completion``, those of the answers."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class Record:
    """One request, by its ``id``; ``service`` and ``model`` (``name@version``) are what answered it.

    ``at`` is when it ended, in seconds since 1970, ``status`` that of its answer. Of two records of one request the one
    with the higher ``witness`` counts, whichever came first.
    """

    id: str
    key: str
    tenant: str
    service: str
    model: str
    prompt: int
    cached: int
    completion: int
    status: int
    at: float
    witness: int

    @classmethod
    def read(cls, line: bytes) -> Self:
        """What :meth:`line` wrote. Raises ValueError for anything else."""
        try:
            return cls(**json.loads(line))
        except TypeError as error:
            raise ValueError(f"no record of usage: {error}") from None

    def line(self) -> bytes:
        """JSON and a line end."""
        return json.dumps(asdict(self), separators=(",", ":")).encode() + b"\n"
