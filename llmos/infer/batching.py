"""Which tokens are computed next: continuous batching over one cache of blocks.

Sequences join and leave between steps (Orca, Yu et al., OSDI 2022); long prompts are read in parts beside the next
tokens of the others (Sarathi-Serve, Agrawal et al., OSDI 2024); when blocks run out, the last in rank gives its own
back and computes them again later (PagedAttention, Kwon et al., SOSP 2023).

Nobody starves: the first in rank is never preempted, every other becomes the first in time (see ``Entry.rank``), and
``FairQueue`` does the same for those who wait.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from llmos.errors import ConflictError, ContextLengthError, UsageError
from llmos.infer.blocks import Blocks, blocks_for
from llmos.infer.entry import Batch, Entry, Part
from llmos.infer.fairness import FairQueue
from llmos.infer.step import BLOCK_TOKENS

__all__ = ["Batch", "Batching", "Entry", "Part"]


class Batching:
    """At most ``max_running`` entries hold blocks, and ``token_budget`` tokens are computed in a step.

    ``depth`` is how many batches may be unsettled at once: each takes its share of those who decode. Raises UsageError
    for a budget in which not every running entry has a token.
    """

    def __init__(
        self, blocks: Blocks, *, max_running: int, token_budget: int, context_length: int, depth: int = 1
    ) -> None:
        if not 1 <= max_running <= token_budget:
            what = f"{max_running} running entries and {token_budget} tokens a step"
            raise UsageError(f"{what}: expected at least one of each, and a token for every entry")
        self._blocks, self._max_running, self._token_budget = blocks, max_running, token_budget
        self._context_length, self._depth = context_length, depth
        self._entries: dict[str, Entry] = {}
        self._running: dict[str, Entry] = {}
        self._queue = FairQueue()
        self._added = 0
        self._next_deadline = float("inf")  # or earlier

    @property
    def running(self) -> tuple[Entry, ...]:
        """Those that hold blocks."""
        return tuple(self._running.values())

    def add(self, entry: Entry) -> None:
        """Let ``entry`` wait for its turn.

        Raises ContextLengthError for one that can never run to its limit, ConflictError for an id that is there
        already, UsageError for one without a prompt, without room for an answer, or of no weight.
        """
        self._check(entry)
        self._added += 1
        entry.number = self._added
        self._entries[entry.id] = entry
        self._queue.add(entry)
        if entry.deadline is not None:
            self._next_deadline = min(self._next_deadline, entry.deadline)

    def cancel(self, id: str) -> None:
        """Forget the entry, complete or not: its blocks are free now, or when its batch is settled.

        What is cached of them is found by its prefix as long as there is room. Nothing happens if there is none.
        """
        entry = self._entries.get(id)
        if entry is None:
            return
        if entry.in_flight:
            entry.over = True
        else:
            self._remove(entry)

    def next_batch(self, now: float) -> Batch:
        """What to compute now, at the time ``now`` (seconds); without parts when there is nothing."""
        expired = self._expire(now)
        preempted: list[Entry] = []
        self._let_urgent_in(now, preempted)
        parts = self._decode(preempted)
        parts += self._prefill(self._token_budget - sum(part.count for part in parts), now)
        for part in parts:
            entry = part.entry
            entry.in_flight = True
            self._queue.charge(entry, min(entry.computed + part.count, len(entry.tokens)))
        return Batch(tuple(parts), tuple(preempted), expired)

    def settle(self, batch: Batch, tokens: Mapping[str, Sequence[int]]) -> None:
        """``batch`` has been computed: take the ``tokens`` each entry got whose logits were wanted.

        That is one, or as many drafts as were right and one more; the slots of the others are given back. An entry
        that got none computes its last token again. Cancel those whose step failed before: then nothing is kept.
        """
        for part in batch.parts:
            part.entry.in_flight = False
            if part.entry.over:
                self._remove(part.entry)
            else:
                _advance(part, tokens.get(part.entry.id, ()))

    def _check(self, entry: Entry) -> None:
        length, limit, most = len(entry.tokens), entry.limit, self._context_length
        if entry.id in self._entries:
            raise ConflictError(f"the request `{entry.id}` is there already: expected an id of its own")
        if not length or entry.weight <= 0:
            what = f"{length} prompt tokens and a weight of {entry.weight}"
            raise UsageError(f"{what}: expected at least one token, and a weight above 0")
        if not length < limit <= most:
            what = f"{length} prompt tokens and at most {limit} with the answer: expected fewer than {most} and {most}"
            raise ContextLengthError(what, hint="Send a shorter prompt, or ask for fewer tokens.")
        if blocks_for(limit - 1) > self._blocks.count:
            room = self._blocks.count * BLOCK_TOKENS
            what = f"{limit} tokens of prompt and answer: the key-value cache has room for {room}"
            raise ContextLengthError(what, hint="Ask for fewer tokens, or give the engine more memory.")

    def _expire(self, now: float) -> tuple[Entry, ...]:
        """Those past their deadline, now gone; one in flight goes when it is settled."""
        if now < self._next_deadline:
            return ()
        late: list[Entry] = []
        self._next_deadline = float("inf")
        for entry in self._entries.values():
            if entry.deadline is not None and entry.deadline <= now and not entry.in_flight:
                late.append(entry)
            elif entry.deadline is not None:
                self._next_deadline = min(self._next_deadline, entry.deadline)
        for entry in late:
            self._remove(entry)
        return tuple(late)

    def _let_urgent_in(self, now: float, preempted: list[Entry]) -> None:
        """Preempt for those who wait and have a higher priority, in as far as there is no room for them."""
        while (first := self._queue.first(now)) and self._running:
            lower = [entry for entry in self._preemptible(first) if entry.priority < first.priority]
            if not lower:
                return
            if not self._admit(first, now):
                self._preempt(max(lower, key=lambda entry: entry.rank), preempted)

    def _decode(self, preempted: list[Entry]) -> list[Part]:
        """The next token of those who have read their prompt, and their drafts: of this batch's share of them."""
        ready = [entry for entry in self._running.values() if entry.decoding and not entry.in_flight]
        share = min(len(ready), -(-len(self._running) // self._depth))
        spare = self._token_budget - share
        if len(self._queue) or share < len(self._running):
            spare //= 2  # prompts are read too
        taken: dict[str, Entry] = {}
        ready[:share] = sorted(ready[:share], key=lambda entry: entry.rank)  # the first in rank get blocks first
        for entry in ready:
            if len(taken) == share:
                break
            if entry.id in self._running and self._make_room(entry, taken, preempted):  # else another gets its place
                taken[entry.id] = entry
        for entry in taken.values():  # drafts get what blocks are left when everybody has one
            entry.drafts = self._fitting(entry, spare)
            spare -= len(entry.drafts)
        return [Part(entry, 1 + len(entry.drafts)) for entry in taken.values()]

    def _fitting(self, entry: Entry, spare: int) -> tuple[int, ...]:
        """The drafts that may be computed: within the limit, ``spare`` tokens, and blocks nobody decodes into now."""
        drafts = entry.drafts[: max(0, min(spare, entry.limit - 1 - len(entry.tokens)))]
        assert entry.table is not None
        return drafts if drafts and entry.table.grow(len(entry.tokens) + len(drafts)) else ()

    def _make_room(self, entry: Entry, taken: Container[str], preempted: list[Entry]) -> bool:
        """A slot for the newest token of ``entry``; who is behind it in rank and not ``taken`` gives blocks back."""
        assert entry.table is not None
        while not entry.table.grow(len(entry.tokens)):
            behind = [other for other in self._preemptible(entry) if other.id not in taken]
            if not behind:
                return False
            self._preempt(max(behind, key=lambda other: other.rank), preempted)
        return True

    def _prefill(self, budget: int, now: float) -> list[Part]:
        """Parts of the prompts, first in rank first; then of those for whom there is room."""
        parts: list[Part] = []
        reading = [entry for entry in self._running.values() if not (entry.decoding or entry.in_flight)]
        reading.sort(key=lambda entry: entry.rank, reverse=True)
        while budget > 0:
            if reading:
                entry = reading.pop()
            else:
                first = self._queue.first(now)
                if first is None or not self._admit(first, now):
                    break
                entry = first
            entry.drafts = ()
            parts.append(Part(entry, min(budget, len(entry.tokens) - entry.computed)))
            budget -= parts[-1].count
        return parts

    def _admit(self, entry: Entry, now: float) -> bool:
        """Give ``entry``, the first of the queue, blocks for all its tokens, if a block is left for each who runs."""
        if len(self._running) >= self._max_running:
            return False
        if entry.table is None:
            entry.table = self._blocks.table(entry.tenant.encode())
        entry.table.open(entry.tokens)
        wanted = blocks_for(len(entry.tokens)) - len(entry.table.blocks)
        if wanted + len(self._running) > self._blocks.free or not entry.table.grow(len(entry.tokens)):
            entry.table.release()
            return False
        self._queue.take(entry, now)
        self._running[entry.id] = entry
        entry.computed = entry.table.cached
        entry.served = max(entry.served, entry.computed)
        return True

    def _preemptible(self, entry: Entry) -> list[Entry]:
        """Those who run, are not in flight, and are behind ``entry`` in rank."""
        return [other for other in self._running.values() if not other.in_flight and other.rank > entry.rank]

    def _preempt(self, entry: Entry, preempted: list[Entry]) -> None:
        """Take the blocks of ``entry``; it waits, and computes again what is not cached by then."""
        self._stop(entry)
        entry.computed = 0
        self._queue.add(entry)
        preempted.append(entry)

    def _remove(self, entry: Entry) -> None:
        del self._entries[entry.id]
        if entry.id in self._running:
            self._stop(entry)
        else:
            self._queue.remove(entry)

    def _stop(self, entry: Entry) -> None:
        del self._running[entry.id]
        assert entry.table is not None
        entry.table.release()


def _advance(part: Part, got: Sequence[int]) -> None:
    """Move ``part.entry`` on by what was computed; ``got`` follows its tokens."""
    entry = part.entry
    assert entry.table is not None
    assert len(got) <= part.logits and tuple(got[:-1]) == entry.drafts[: max(0, len(got) - 1)], "not its drafts"
    end = entry.computed + part.count
    entry.tokens.extend(got)
    entry.computed = min(end, len(entry.tokens) - 1)
    if part.logits:
        entry.drafts = ()
        entry.table.shrink(len(entry.tokens))
    entry.table.commit(entry.tokens, entry.computed)
