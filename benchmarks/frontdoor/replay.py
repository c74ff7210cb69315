"""Requests of a trace at several replicas, in virtual time: whose caches hold what, by the engine's own block manager.

A trace has prompts as the hashes of their blocks of 512 tokens. Each is one block here, of tokens that no other hash
has. A replica computes one prompt after another, PREFILL_PER_S tokens a second, and answers beside that, a token every
TOKEN_S. A prompt's blocks are looked for when its turn comes, held until its answer is complete, and found by others
once it is computed. A router hears what the front door tells it: when a request begins, when its first token is there,
and when it is over. It never looks into a cache. A replica that is lost takes its cache along; its requests that have
no token yet are asked again, and count as they are found then.
"""

from __future__ import annotations

import heapq
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.serve_blocks import tokens_of
from llmos.front.routing import Candidate, Given, Router
from llmos.infer.blocks import Blocks, Table
from llmos.infer.prefix import BLOCK_TOKENS, digests

TRACE_BLOCK = 512
PREFILL_PER_S, TOKEN_S = 15_000.0, 0.02
"""Nobody's machine. Mooncake's synthetic trace asks for 59,900 tokens a second: four such replicas keep up even if they
find little, so that caches are compared, and not queues that grow for ever."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt of the trace, its hashes and its tokens, and those of its answer; it comes at ``at_s`` seconds."""

    at_s: float
    blocks: tuple[int, ...]
    tokens: int
    answer: int


@dataclass(slots=True)
class Outcome:
    """So many of the ``blocks`` were ``found``.

    ``computed`` and ``served`` are the tokens of each replica that was there to the end; ``first_s`` is how long each
    request waited until its prompt was computed.
    """

    blocks: int = 0
    found: int = 0
    computed: list[int] = field(default_factory=list)
    served: list[int] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)

    @property
    def hit(self) -> float:
        """The share of all blocks that was found."""
        return self.found / self.blocks


def _coarsely(asked: Asked) -> list[bytes]:
    """As the block manager calls them."""
    return digests(list(tokens_of(asked.blocks)), b"")


class Routed:
    """Our router, for replicas with room for so many blocks. ``took_s`` is what each decision took of the processor."""

    def __init__(self, room: int, block_tokens: int, cut: Callable[[Asked], list[bytes]] = _coarsely) -> None:
        self.router, self._room, self._cut = Router(block_tokens), room, cut
        self.took_s: list[float] = []

    def begin(self, there: Iterable[int], asked: Asked, now: float) -> tuple[int, Given]:
        """The replica that gets the request, one of those that are ``there``."""
        blocks, tokens = self._cut(asked), asked.tokens + asked.answer
        candidates = [Candidate(str(replica), self._room) for replica in there]
        began = time.process_time()
        chosen = self.router.choose(candidates, blocks, "", tokens, now)
        given = self.router.begun(chosen, blocks, "", tokens, now)
        self.took_s.append(time.process_time() - began)
        return int(chosen), given


class _Replica:
    """One cache, the requests whose turn has not come, and the blocks of those whose turn has."""

    def __init__(self, room: int) -> None:
        self.blocks = Blocks(room)
        self.waiting: deque[int] = deque()
        self.tables: dict[int, Table] = {}
        self.reading: int | None = None
        self.computed = self.served = 0


class Replay:
    """``asked`` at so many replicas with room for ``room`` blocks each; the second is lost at ``lost_s``."""

    def __init__(self, asked: Sequence[Asked], replicas: int, room: int, lost_s: float = math.inf) -> None:
        self._asked = asked
        self._replicas = {number: _Replica(room) for number in range(replicas)}
        self._events: list[tuple[float, int, Callable[[int], None], int]] = [
            (one.at_s, number, self._ask, number) for number, one in enumerate(asked)
        ]
        self._scheduled, self._now, self._turn = len(asked), 0.0, 0
        if lost_s < math.inf:
            self._in(lost_s, self._lose, 1)
        self._found, self._first_s = [0] * len(asked), [0.0] * len(asked)
        self._given: dict[int, Given] = {}
        self._at: dict[int, int] = {}  # request → its replica
        self._routed: Routed | None = None

    def run(self, routed: Routed | None) -> Outcome:
        """Each request to the replica that is chosen; without a router, to one after the other."""
        self._routed = routed
        while self._events:
            self._now, _, happen, number = heapq.heappop(self._events)
            happen(number)
        left = self._replicas.values()
        blocks, computed = sum(len(one.blocks) for one in self._asked), [one.computed for one in left]
        return Outcome(blocks, sum(self._found), computed, [one.served for one in left], self._first_s)

    def _in(self, wait_s: float, happen: Callable[[int], None], number: int) -> None:
        self._scheduled += 1
        heapq.heappush(self._events, (self._now + wait_s, self._scheduled, happen, number))

    def _ask(self, number: int) -> None:
        if self._routed is None:
            self._turn += 1
            chosen = list(self._replicas)[self._turn % len(self._replicas)]
        else:
            chosen, self._given[number] = self._routed.begin(self._replicas, self._asked[number], self._now)
        self._at[number] = chosen
        self._replicas[chosen].waiting.append(number)
        self._read_next(chosen)

    def _read_next(self, name: int) -> None:
        """The replica begins with the next prompt, if it can."""
        replica = self._replicas[name]
        if replica.reading is not None or not replica.waiting:
            return
        number = replica.reading = replica.waiting.popleft()
        asked, tokens = self._asked[number], list(tokens_of(self._asked[number].blocks))
        table = replica.tables[number] = replica.blocks.open(tokens, b"")
        assert table.grow(len(tokens)), "a prompt does not fit beside those that are answered: expected more room"
        self._found[number] = table.cached // BLOCK_TOKENS
        missing = max(0, asked.tokens - self._found[number] * TRACE_BLOCK)
        replica.computed += missing + asked.answer
        replica.served += asked.tokens + asked.answer
        self._in(missing / PREFILL_PER_S, self._answer, number)

    def _answer(self, number: int) -> None:
        """Its prompt is computed."""
        replica = self._replicas.get(self._at[number])
        if replica is None or replica.reading != number:
            return  # it was lost meanwhile
        self._first_s[number] = self._now - self._asked[number].at_s
        tokens = list(tokens_of(self._asked[number].blocks))
        replica.tables[number].commit(tokens, len(tokens))
        if self._routed is not None:
            self._routed.router.answers(self._given[number])
        self._in(self._asked[number].answer * TOKEN_S, self._end, number)
        replica.reading = None
        self._read_next(self._at[number])

    def _end(self, number: int) -> None:
        """Its answer is complete, or its replica is lost."""
        if self._routed is not None:
            self._routed.router.ended(self._given.pop(number))
        if (replica := self._replicas.get(self._at[number])) is not None:
            replica.tables.pop(number).release()

    def _lose(self, name: int) -> None:
        """Those without a token are asked again, elsewhere."""
        replica = self._replicas.pop(name)
        again = [*([replica.reading] if replica.reading is not None else []), *replica.waiting]
        if self._routed is not None:
            self._routed.router.lost(str(name))
        for number in again:
            self._ask(number)


def read(trace: Path) -> list[Asked]:
    """The requests of a trace in Mooncake's format, times in milliseconds."""
    rows = [json.loads(line) for line in trace.read_text().splitlines()]
    return [
        Asked(row["timestamp"] / 1000, tuple(row["hash_ids"]), row["input_length"], row["output_length"])
        for row in rows
    ]
