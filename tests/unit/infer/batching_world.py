"""A model and its key-value cache of plain Python values, which the batching drives; every step is checked."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from llmos.infer.assemble import step_of
from llmos.infer.batching import Batch, Batching, Entry
from llmos.infer.blocks import Blocks
from llmos.infer.step import BLOCK_TOKENS, Step

VOCABULARY = 3


def next_token(tokens: Sequence[int]) -> int:
    """What the model says after ``tokens``."""
    return hash((*tokens, 7)) % VOCABULARY


def answer_to(prompt: Sequence[int], limit: int) -> list[int]:
    """``prompt`` and what the model says, without any batching."""
    tokens = list(prompt)
    while len(tokens) < limit:
        tokens.append(next_token(tokens))
    return tokens


def waiting(batching: Batching) -> list[Entry]:
    """Those that hold no blocks."""
    return [entry for entry in batching._entries.values() if entry.id not in batching._running]


@dataclass
class Asked:
    """An entry, what it must become, and how many drafts it gets, of which some first ones are right."""

    entry: Entry
    whole: list[int]
    drafts: int


class World:
    def __init__(self, count: int, max_running: int, token_budget: int, depth: int = 1) -> None:
        self.blocks = Blocks(count)
        self.most, self.token_budget, self.depth = max_running, token_budget, depth
        self.batching = Batching(
            self.blocks, max_running=max_running, token_budget=token_budget, context_length=500, depth=depth
        )
        self.now, self.step_s = 0.0, 1.0
        self.asked: dict[str, Asked] = {}
        self.done: list[str] = []
        self.expired: list[Entry] = []
        self.flight: deque[Batch] = deque()
        self.cache: dict[int, tuple[str, tuple[int, ...]]] = {}  # slot → whose salt, and the tokens up to that one
        self.computed: Counter[str] = Counter()  # by tenant
        self.preempted = 0

    def add(self, prompt: Sequence[int], answer: int, *, drafts: int = 0, **about: object) -> Entry:
        tokens, limit = list(prompt), len(prompt) + answer
        about = {"arrived": self.now, **about}
        entry = Entry(f"r{len(self.asked)}", tokens, len(prompt), limit=limit, **about)  # type: ignore[arg-type]
        self.batching.add(entry)
        self.asked[entry.id] = Asked(entry, answer_to(prompt, limit), drafts)
        return entry

    def step(self) -> Batch:
        """``step_s`` later: start a batch; settle the oldest if the pipeline is full, or has nothing to start."""
        self.now += self.step_s
        busy = {part.entry.id for batch in self.flight for part in batch.parts}
        batch = self.batching.next_batch(self.now)
        self._check(batch, busy)
        self.preempted += len(batch.preempted)
        self.expired += batch.expired
        if batch.parts:
            self._compute(batch, step_of(batch))
            self.flight.append(batch)
        if self.flight and (len(self.flight) == self.depth or not batch.parts):
            self._settle(self.flight.popleft())
        self.check()
        return batch

    def drain(self, most: int = 3000) -> None:
        """Until nobody is left."""
        for _ in range(most):
            if not (self.batching.running or waiting(self.batching)):
                assert self.blocks.free == self.blocks.count and not self.flight
                return
            idle = not self.flight
            batch = self.step()
            assert batch.parts or batch.expired or not idle, "nothing goes on"
        raise AssertionError("somebody starves")

    def check(self) -> None:
        """Every block is free, or held by exactly those in whose tables it is."""
        running, waits = self.batching.running, waiting(self.batching)
        held = self._held()
        assert self.blocks.free + len(held) == self.blocks.count, "a block leaked, or is free and held"
        assert self.blocks._references == [held[block] for block in range(self.blocks.count)]
        assert all(not entry.table or not entry.table.blocks for entry in waits), "who waits holds no block"
        assert len(running) <= self.most
        assert not {entry.id for entry in running} & {entry.id for entry in waits}

    def _held(self) -> Counter[int]:
        return Counter(block for entry in self.batching.running if entry.table for block in entry.table.blocks)

    def _check(self, batch: Batch, busy: set[str]) -> None:
        parts, ids = batch.parts, [part.entry.id for part in batch.parts]
        assert sum(part.count for part in parts) <= self.token_budget
        assert all(part.count >= 1 for part in parts)
        assert len(set(ids)) == len(ids) and not busy & set(ids), "an entry is in two batches"
        assert set(ids) <= {entry.id for entry in self.batching.running}
        assert all(entry.deadline is not None and entry.deadline <= self.now for entry in batch.expired)
        if self.depth == 1:
            left = [entry for entry in self.batching.running if entry.decoding and entry.id not in ids]
            assert not left or not self.blocks.free, "one who decodes gets no token although there are blocks"
        self.check()

    def _compute(self, batch: Batch, step: Step) -> None:
        """Write every new token's slot, then read what each sequence sees."""
        held = self._held()
        starts = step.starts_S.tolist()
        for row, part in enumerate(batch.parts):
            tokens = [*part.entry.tokens, *part.entry.drafts]
            here = range(starts[row], starts[row + 1])
            assert len(here) == part.count
            for index in here:
                position = int(step.positions_N[index])
                assert int(step.tokens_N[index]) == tokens[position]
                block = int(step.blocks_SM[row, position // BLOCK_TOKENS])
                assert held[block] == 1, "a block is written that two hold"
                assert self.blocks._digests[block] is None, "a block is written that others can find"
                slot = block * BLOCK_TOKENS + position % BLOCK_TOKENS
                self.cache[slot] = (part.entry.tenant, tuple(tokens[: position + 1]))
            self.computed[part.entry.tenant] += part.count
        for row, part in enumerate(batch.parts):
            tokens = [*part.entry.tokens, *part.entry.drafts][: part.entry.computed + part.count]
            for position in range(len(tokens)):
                slot = int(step.blocks_SM[row, position // BLOCK_TOKENS]) * BLOCK_TOKENS + position % BLOCK_TOKENS
                assert self.cache[slot] == (part.entry.tenant, tuple(tokens[: position + 1])), "another's tokens"
        wanted = [starts[n + 1] - part.logits + k for n, part in enumerate(batch.parts) for k in range(part.logits)]
        assert step.logits_at_L.tolist() == wanted

    def _settle(self, batch: Batch) -> None:
        got: dict[str, list[int]] = {}
        for part in batch.parts:
            entry = part.entry
            if part.logits:
                right = self.asked[entry.id].whole[len(entry.tokens) :]
                agreed = next((n for n, d in enumerate(entry.drafts) if d != right[n]), len(entry.drafts))
                got[entry.id] = right[: agreed + 1]
        gone = {part.entry.id for part in batch.parts if part.entry.over}
        self.batching.settle(batch, got)
        for part in batch.parts:
            entry, asked = part.entry, self.asked[part.entry.id]
            if entry.id in gone:
                assert entry.table and not entry.table.blocks, "cancelled, and still holds blocks after its batch"
            elif len(entry.tokens) == entry.limit:
                assert entry.tokens == asked.whole
                self.batching.cancel(entry.id)
                self.done.append(entry.id)
            elif part.logits and asked.drafts:
                right = asked.whole[len(entry.tokens) :][: asked.drafts]
                right += [0] * (asked.drafts - len(right))  # beyond the limit: must be cut
                wrong_from = len(entry.tokens) % (asked.drafts + 1)
                entry.drafts = tuple(t if n < wrong_from else (t + 1) % VOCABULARY for n, t in enumerate(right))
