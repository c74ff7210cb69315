"""What a replica says of itself every second: to the control module, which tells the front door."""

from __future__ import annotations

from dataclasses import dataclass

BEAT_S = 1.0
FORGET_S = 3.5
"""A replica that has said nothing for so long is not there."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Replica ``replica`` of ``revision`` of ``service`` answers at ``url``, an address without a path.

    ``running`` and ``waiting`` are requests, ``blocks`` pages of the key-value cache, ``tokens`` what it has generated
    since it started. A ``draining`` one takes nothing new; a ``stalled`` one has requests and does nothing about them.
    """

    service: str
    revision: str
    replica: str
    url: str
    running: int = 0
    waiting: int = 0
    blocks: int = 0
    blocks_free: int = 0
    tokens: int = 0
    draining: bool = False
    stalled: bool = False
