"""What a forward pass is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NOT_COUNTED = -1
"""Fills up rows: read as token 0, not to be predicted."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of tokens. ``targets_BT`` are to be predicted after each of ``tokens_BT``; negative ones do not count.

    ``documents_BT`` says at which token of its row each token's document begins, so it tells documents apart, and
    positions in them are distances from it. None if rows are one document each.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor | None = None

    @classmethod
    def of(cls, rows_BW: Tensor, documents_BT: Tensor | None = None) -> Batch:
        """Inputs and targets of rows of W = T + 1 tokens. ``~token`` (negative) is read, but not to be predicted."""
        read_BT = rows_BW[:, :-1]
        return cls(torch.where(read_BT < 0, ~read_BT, read_BT), rows_BW[:, 1:].contiguous(), documents_BT)

    def __len__(self) -> int:
        return len(self.tokens_BT)

    @property
    def counted(self) -> Tensor:
        """How many targets count."""
        return (self.targets_BT >= 0).sum()

    def split(self, rows: int) -> Iterator[Batch]:
        """In parts of ``rows``; the last may be smaller."""
        for start in range(0, len(self), rows):
            part = slice(start, start + rows)
            documents_BT = None if self.documents_BT is None else self.documents_BT[part]
            yield Batch(self.tokens_BT[part], self.targets_BT[part], documents_BT)

    def filled(self, rows: int) -> Batch:
        """With rows that do not count at its end, ``rows`` in all."""

        def grown(part: Tensor, value: int) -> Tensor:
            return torch.nn.functional.pad(part, (0, 0, 0, rows - len(self)), value=value)

        documents_BT = None if self.documents_BT is None else grown(self.documents_BT, 0)
        return Batch(grown(self.tokens_BT, 0), grown(self.targets_BT, NOT_COUNTED), documents_BT)

    def to(self, device: torch.device) -> Batch:
        """The same on ``device``; to a GPU, copied from pinned memory while it computes."""
        if device.type == "cpu":
            return self
        parts = (self.tokens_BT, self.targets_BT, self.documents_BT)
        moved = [None if part is None else part.pin_memory().to(device, non_blocking=True) for part in parts]
        assert moved[0] is not None and moved[1] is not None
        return Batch(moved[0], moved[1], moved[2])
