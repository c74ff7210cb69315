"""Drafts of a smaller model with the same vocabulary.

It says what it would have answered itself: it draws with the request's parameters and with the random numbers that the
model's own tokens will be drawn with. So drafts are right as often as the two models agree, at any temperature.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from llmos.errors import UsageError
from llmos.infer.assemble import step_of
from llmos.infer.blocks import Blocks
from llmos.infer.entry import Batch, Entry, Part
from llmos.infer.sampling import Sampler
from llmos.infer.speculative import Ask
from llmos.infer.step import Runner

READ_TOKENS = 256
"""Tokens of a request that are read in one step. Who has more to read gets no drafts until it is done."""


class DraftModel:
    """Drafts by ``runner``, whose cache it manages, for the requests of ``sampler``. Raises UsageError.

    Both must have ``vocab_size`` tokens. Whose tokens are more than ``context_length``, that of the draft model, gets
    no more drafts.
    """

    def __init__(self, runner: Runner, sampler: Sampler, vocab_size: int, context_length: int) -> None:
        if runner.vocab_size != vocab_size:
            what = f"the draft model has {runner.vocab_size} tokens, the model {vocab_size}"
            raise UsageError(f"{what}: expected the same vocabulary", param="draft")
        self._runner, self._sampler, self._context_length = runner, sampler, context_length
        self._blocks = Blocks(runner.blocks, prefix_cache=False)
        self._entries: dict[str, Entry] = {}

    def draft(self, asked: Sequence[Ask]) -> list[tuple[int, ...]]:
        """See :class:`llmos.infer.speculative.Drafter`. Who finds no room in the cache gets no drafts."""
        drafts: dict[str, list[int]] = {ask.id: [] for ask in asked}
        active = [ask for ask in asked if self._catch_up(ask)]
        ahead = 0
        while active:
            entries = [self._entries[ask.id] for ask in active]
            ready = [entry for entry in entries if len(entry.tokens) - entry.computed <= READ_TOKENS]
            logits_LV = self._step(entries)
            guessed = self._sampler.guess([entry.id for entry in ready], ahead, logits_LV) if ready else []
            for entry, token in zip(ready, guessed, strict=True):
                drafts[entry.id].append(token)
                entry.tokens.append(token)
            ahead += 1
            going = {entry.id for entry in ready}
            active = [ask for ask in active if ask.id in going and ahead < ask.most and self._room(ask.id)]
        return [tuple(drafts[ask.id]) for ask in asked]

    def remove(self, id: str) -> None:
        """See :class:`llmos.infer.speculative.Drafter`."""
        entry = self._entries.pop(id, None)
        if entry is not None and entry.table is not None:
            entry.table.release()

    def close(self) -> None:
        """See :class:`llmos.infer.speculative.Drafter`."""
        self._runner.close()

    def _catch_up(self, ask: Ask) -> bool:
        """Let the entry have the tokens of ``ask``: what was computed of wrong drafts is computed again."""
        if len(ask.tokens) > self._context_length:
            self.remove(ask.id)
            return False
        entry = self._entries.get(ask.id)
        if entry is None:
            entry = self._entries[ask.id] = Entry(ask.id, [], 0, limit=0, table=self._blocks.table(b""))
        same = min(entry.prompt, entry.computed, len(ask.tokens) - 1)  # as many were the model's own last time
        while same < min(entry.computed, len(ask.tokens) - 1) and entry.tokens[same] == ask.tokens[same]:
            same += 1
        entry.tokens[entry.prompt :] = ask.tokens[entry.prompt :]
        entry.prompt, entry.computed = len(ask.tokens), same
        return self._room(ask.id)

    def _room(self, id: str) -> bool:
        """Whether the last token of the entry can be computed; without blocks for it, those it has are given back."""
        entry = self._entries[id]
        assert entry.table is not None
        if len(entry.tokens) > self._context_length:
            return False
        if entry.table.grow(len(entry.tokens)):
            return True
        self.remove(id)
        return False

    def _step(self, entries: Sequence[Entry]) -> Tensor:
        """Compute what is missing, as far as one step goes. Returns the logits of those that are complete."""
        parts = [Part(entry, min(READ_TOKENS, len(entry.tokens) - entry.computed)) for entry in entries]
        self._runner.start(step_of(Batch(tuple(parts))))
        logits_LV = self._runner.finish()
        for part in parts:
            part.entry.computed += part.count
        return logits_LV
