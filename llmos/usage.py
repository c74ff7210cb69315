"""A request that is over and what it used: told by whoever saw it, counted once in the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple, Self

CLIENT_GONE = 499
"""The status of a request whose client left before the answer was complete (nginx's convention)."""
GUESSED, REPLICA, FRONT_DOOR = 0, 1, 2
"""Witnesses. The front door has seen a request's end; a replica knows what it has computed, also for a client that left
or for a front door that was killed; and when the replica is gone, what came of it is all that can be said."""
_LATEST = 253_402_300_800.0  # the year 10000: days have names until then
_MOST = 2**53


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
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """The record with these fields; those that a newer version may have added are left out. Raises ValueError,
        which names the field, for what could not be counted."""
        known = {name: _checked(name, fields.get(name)) for name in cls.__slots__}
        return cls(**known)

    @classmethod
    def read(cls, line: bytes) -> Self:
        """What :meth:`line` wrote. Raises ValueError for anything else."""
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise ValueError("no record of usage: expected a JSON object")
        return cls.of(fields)

    @property
    def fields(self) -> dict[str, Any]:
        """By their names; ``dataclasses.asdict`` takes several times as long."""
        return {name: getattr(self, name) for name in self.__slots__}

    def line(self) -> bytes:
        """JSON and a line end."""
        text = encode_basestring_ascii  # each request has one: `json.dumps` takes several times as long
        return (
            f'{{"id":{text(self.id)},"key":{text(self.key)},"tenant":{text(self.tenant)},'
            f'"service":{text(self.service)},"model":{text(self.model)},"prompt":{self.prompt},"cached":{self.cached},'
            f'"completion":{self.completion},"status":{self.status},"at":{self.at!r},"witness":{self.witness}}}\n'
        ).encode()


def _checked(name: str, value: Any) -> Any:
    """``value`` if it can be that of the field ``name``. Raises ValueError."""
    if name in ("id", "key", "tenant", "service", "model"):
        right, expected = isinstance(value, str) and _is_unicode(value), "text"
    elif name == "at":
        right = type(value) in (int, float) and 0 <= value < _LATEST
        expected = "seconds since 1970"
    else:
        right, expected = type(value) is int and 0 <= value < _MOST, "a number of at least 0"
    if not right:
        raise ValueError(f"no record of usage: `{name}` is {str(value)[:50]!r}: expected {expected}")
    return value


def _is_unicode(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can say and SQLite cannot store."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
