"""Quantized matrices as compressed-tensors stores them: packed values ↔ whole numbers ↔ weights.

A row's values, each stored + 2^(bits - 1), lie one after another in int32 words, the first in the lowest bits. On a
little-endian machine that is simply their bytes in order; for 4 bits, two values a byte, the even column in the low
half. Sizes: O rows (output features), I columns (input features), W words of a row, G scales of a row.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.nn import functional as F

from llmos.errors import ModelError

WORD_BYTES = 4


def words(columns: int, bits: int) -> int:
    """int32 words of a row of ``columns`` values."""
    return -(-columns * bits // (8 * WORD_BYTES))


def pack(values_OI: Tensor, bits: int) -> Tensor:
    """``weight_packed`` [O, W], int32, of whole numbers from -2^(bits - 1) to 2^(bits - 1) - 1 (int8)."""
    _check_machine()
    columns = values_OI.shape[1]
    padding = words(columns, bits) * WORD_BYTES * 8 // bits - columns
    stored_OI = F.pad((values_OI.short() + (1 << (bits - 1))).byte(), (0, padding))
    if bits == 4:
        stored_OI = stored_OI[:, ::2] | (stored_OI[:, 1::2] << 4)
    return stored_OI.contiguous().view(torch.int32)


def stored_bytes(packed_OW: Tensor, bits: int, columns: int) -> Tensor:
    """The bytes [O, ``columns`` · bits / 8], uint8, in ``packed_OW``: a view. Each value is stored + 2^(bits - 1)."""
    _check_machine()
    return packed_OW.view(torch.uint8)[:, : -(-columns * bits // 8)]


def unpack(packed_OW: Tensor, bits: int, columns: int) -> Tensor:
    """The whole numbers [O, ``columns``], int8, in ``packed_OW``."""
    stored_OI = stored_bytes(packed_OW, bits, columns)
    if bits == 4:
        stored_OI = torch.stack((stored_OI & 15, stored_OI >> 4), dim=-1).flatten(1)[:, :columns]
    return (stored_OI.short() - (1 << (bits - 1))).to(torch.int8)


def dequantize(values_OI: Tensor, scale_OG: Tensor) -> Tensor:
    """The weights [O, I], float32; each scale is that of I / G columns."""
    scaled_OGC: Tensor = values_OI.unflatten(1, (scale_OG.shape[1], -1)) * scale_OG.float()[..., None]
    return scaled_OGC.flatten(1)


def _check_machine() -> None:
    if sys.byteorder != "little":
        raise ModelError(
            "quantized weights are read on little-endian machines only; this one is big-endian",
            hint="Use the original model.",
        )
