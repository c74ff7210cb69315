"""What replicas and the control module tell the front door: each replica of itself, every second, and the control
module of each service, who is to be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

BEAT_S = 1.0
FORGET_S = 3.5
"""A replica that has said nothing for so long is not there."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Replica ``replica`` of ``revision`` of ``service`` answers at ``url``, an address without a path, with ``model``
    (``name@version``).

    ``running`` and ``waiting`` are requests, ``blocks`` pages of the key-value cache, ``tokens`` what it has generated
    since it started, ``cache_hits`` the share of its prompts' tokens that were in its cache. A ``draining`` one takes
    nothing new; a ``stalled`` one has requests and does nothing about them.
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
    model: str = ""
    cache_hits: float | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Who is asked for a service: ``weights`` are the shares of its requests by :attr:`Heartbeat.revision`.

    ``aliases`` are its other names. It ``holds``: requests that nobody can answer now wait, for somebody is starting.
    ``limits`` are those of :class:`llmos.spec.Limits` that are set. ``created_at`` is in seconds since 1970. ``models``
    are the directories of the models, by revision, of those that keep what they computed of prompts.
    """

    created_at: int = 0
    aliases: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    holds: bool = False
    limits: Mapping[str, int] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
