"""``route_hit`` and ``route_imbalance``: what several caches are worth behind one door, by accounting blocks alone.

The trace is Mooncake's synthetic one (Qin et al., FAST 2025): when a prompt comes, and the hashes of its blocks of 512
tokens. Four replicas have room for 4,000 blocks each; the peer is one cache of 16,000 that gets every prompt at once.
Each block of the trace is one block of the engine's own block manager here, of tokens that no other hash has.

A replica computes one prompt after another, PREFILL_PER_S tokens a second, and answers beside that, a token every
TOKEN_S. A prompt's blocks are found when its turn comes, held until its answer is complete, and found by others once it
is computed. The router hears when a request begins, when its prompt is computed and when it is over, as the front door
tells it; it never looks into a cache.
"""

from __future__ import annotations

import functools
import heapq
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count, cycle

from benchmarks.rows import Measured, Options
from llmos.front.routing import Candidate, Given, Router
from llmos.infer.blocks import Blocks, Table
from llmos.infer.prefix import BLOCK_TOKENS

TRACE = "traces/mooncake_synthetic.jsonl"
TRACE_BLOCK = 512
REPLICAS, ROOM = 4, 4_000
PREFILL_PER_S, TOKEN_S = 10_000.0, 0.02
"""A model of 70 billion parameters on one node of eight cards: a third of the time is spare with a good router."""
FINE = 32
"""Blocks of the engine in one of the trace: what a decision costs is measured with prompts as the engine cuts them."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt of the trace: its hashes, its and its answer's tokens, and when it comes, in seconds."""

    at_s: float
    blocks: tuple[int, ...]
    tokens: int
    answer: int


class _Replica:
    """One cache, and how far it has come. ``computed`` and ``served`` are tokens of prompts and answers."""

    def __init__(self, room: int) -> None:
        self.blocks = Blocks(room)
        self.free_s = 0.0
        self.computed = self.served = 0


@dataclass(slots=True)
class Outcome:
    """So many of the ``blocks`` were ``found``; ``computed`` and ``served`` are the tokens of each replica that was there
    to the end; ``first_s`` is how long each request waited until its prompt was computed."""

    blocks: int = 0
    found: int = 0
    computed: list[int] = field(default_factory=list)
    served: list[int] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)

    @property
    def hit(self) -> float:
        """The share of all blocks that was found."""
        return self.found / self.blocks


class Policy(Protocol):
    """Chooses replicas, by their numbers."""

    def choose(self, there: Sequence[int], asked: Asked) -> int:
        """One of those that are ``there``; the request has begun on it."""
        ...

    def computed(self, number: int) -> None:
        """The prompt of request ``number`` is computed."""
        ...

    def over(self, number: int) -> None:
        """Request ``number`` is over."""
        ...

    def lost(self, replica: int) -> None:
        """It is gone."""
        ...
