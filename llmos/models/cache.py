"""The keys and values of past tokens, for batches whose rows have different lengths and come and go.

Rows are always 0 … ``rows`` - 1 without gaps, so that a step reads its rows as one slice: a row that ends gives its
place to the last one. The token at position p of a row lies in slot p; one more slot takes the writes of padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmos.errors import CapacityError, ContextLengthError
from llmos.models.config import ModelConfig


class KVCache:
    """Room for ``max_rows`` rows of ``max_length`` tokens. ``lengths[row]`` is how many tokens a row holds.

    row = cache.add()
    logits = model(prompt_1T, cache=cache.step([len(prompt)], first=row))      # one row: its prompt
    logits = model(tokens_B1, cache=cache.step([1] * cache.rows))              # all rows: one token each
    moved = cache.remove(row)                                                  # ``moved`` is now called ``row``
    """

    def __init__(
        self,
        config: ModelConfig,
        max_rows: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.num_layers, max_rows, config.num_kv_heads, max_length + 1, config.head_dim)
        self.keys_LBKSD = torch.zeros(shape, dtype=dtype, device=device)
        self.values_LBKSD = torch.zeros(shape, dtype=dtype, device=device)
        self.max_rows, self.max_length, self.window = max_rows, max_length, config.sliding_window
        self.lengths: list[int] = []

    @property
    def rows(self) -> int:
        """Rows in use."""
        return len(self.lengths)

    def add(self) -> int:
        """Open an empty row and return its number, the highest. Raises CapacityError when all are in use."""
        if self.rows == self.max_rows:
            raise CapacityError(f"all {self.max_rows} rows of the key-value cache are in use: wait until one ends")
        self.lengths.append(0)
        return self.rows - 1

    def remove(self, row: int) -> int:
        """Close ``row``. The last row takes its number; returns the number it had (``row`` itself if it was last)."""
        last, length = self.rows - 1, self.lengths[-1]
        for part_LBKSD in (self.keys_LBKSD, self.values_LBKSD):
            if row != last:
                part_LBKSD[:, row, :, :length] = part_LBKSD[:, last, :, :length]
                part_LBKSD[:, row, :, length:] = 0
            # What a row left must not reach the next one: hidden slots have weight 0, but 0 · NaN is NaN.
            part_LBKSD[:, last] = 0
        self.lengths[row] = length
        self.lengths.pop()
        return last

    def step(self, counts: Sequence[int], first: int = 0) -> Step:
        """A forward pass that appends ``counts[i]`` tokens to row ``first`` + i.

        Its tokens are [len(counts), max(counts)], each row's own first, padding after. Raises ContextLengthError when
        a row would outgrow ``max_length``.
        """
        for row, count in enumerate(counts, first):
            if self.lengths[row] + count > self.max_length:
                had = f"row {row} holds {self.lengths[row]} tokens and {count} more"
                raise ContextLengthError(f"{had} exceed the {self.max_length} of the key-value cache")
        return Step(self, counts, first)


class Step:
    """One forward pass over some rows of a KVCache. ``positions_BT`` says where each of its tokens stands."""

    def __init__(self, cache: KVCache, counts: Sequence[int], first: int) -> None:
        device = cache.keys_LBKSD.device
        self._cache, self._counts, self._rows = cache, counts, slice(first, first + len(counts))
        before = cache.lengths[self._rows]
        after = [length + count for length, count in zip(before, counts, strict=True)]
        offsets_T = torch.arange(max(counts), device=device)
        positions_BT = torch.tensor(before, device=device)[:, None] + offsets_T
        padding_BT = offsets_T >= torch.tensor(counts, device=device)[:, None]
        self.positions_BT = positions_BT.masked_fill_(padding_BT, cache.max_length)
        self.from_start = not any(before)
        self._seen = max(after)
        self._index = torch.arange(len(counts), device=device)[:, None]
        slots_S = torch.arange(self._seen, device=device)
        visible_BTS = slots_S <= self.positions_BT[..., None]
        if cache.window is not None:
            visible_BTS &= slots_S > self.positions_BT.masked_fill(padding_BT, 0)[..., None] - cache.window
        self.mask_B1TS = torch.where(visible_BTS, 0.0, -torch.inf)[:, None].to(cache.keys_LBKSD.dtype)
        """What attention adds to its scores: -inf where a token does not see a slot."""

    def append(self, layer: int, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """Store the step's keys and values. Returns all that its rows hold, [B, K, S, D]."""
        both = []
        for part_LBKSD, new_BTKD in ((self._cache.keys_LBKSD, k_BTKD), (self._cache.values_LBKSD, v_BTKD)):
            rows_BKSD = part_LBKSD[layer, self._rows]
            rows_BKSD[self._index, :, self.positions_BT] = new_BTKD.to(rows_BKSD.dtype)
            both.append(rows_BKSD[:, :, : self._seen])
        return both[0], both[1]

    def finish(self) -> None:
        """The rows have grown: every layer has stored its part."""
        for row, count in enumerate(self._counts, self._rows.start):
            self._cache.lengths[row] += count
