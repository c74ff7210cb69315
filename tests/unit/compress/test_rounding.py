"""How far rounded weights may be from the original, whatever they are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmos.compress import rounding
from llmos.compress.rounding import round_to_nearest
from llmos.models.packed_layout import dequantize

BF16_ROUNDING = 2**-8


def some_weights(seed: int, columns: int = 64) -> Tensor:
    """Of very different sizes from row to row, with outliers."""
    random = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(5, columns, generator=random) * torch.logspace(-6, 3, 5)[:, None]
    return torch.where(torch.rand(5, columns, generator=random) < 0.03, 10 * weight_OI, weight_OI)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([(8, 0), (8, 32), (4, 0), (4, 16)]), st.booleans())
def test_nothing_unclipped_is_further_away_than_half_a_scale(seed, layout, exact):
    bits, group = layout
    weight_OI, dtype = some_weights(seed), torch.float32 if exact else torch.bfloat16
    values_OI, scale_OG = round_to_nearest(weight_OI, bits, group, dtype)
    columns = group or 64
    assert values_OI.dtype == torch.int8 and scale_OG.dtype == dtype and scale_OG.shape == (5, 64 // columns)
    assert -(2 ** (bits - 1)) <= values_OI.min().item() and values_OI.max().item() < 2 ** (bits - 1)
    scale_OI = scale_OG.float().repeat_interleave(columns, 1)
    clipped_OI = (values_OI.int() == -(2 ** (bits - 1))) | (values_OI.int() == 2 ** (bits - 1) - 1)
    distance_OI = (dequantize(values_OI, scale_OG) - weight_OI).abs()
    assert (distance_OI <= scale_OI * 0.5001)[~clipped_OI].all()
    if bits == 8:  # whose range is never made narrower: only the rounding of the scale can put a weight beyond it
        assert (distance_OI <= scale_OI * (0.5001 + (0 if exact else 127.5 * BF16_ROUNDING))).all()


def test_each_scale_ends_at_the_largest_weight_of_its_own_columns():
    weight_OI = torch.tensor([[0.5, -127.5, 1.0, 255.0], [1.275, 0.0, -12.75, 1.0]])
    values_OI, scale_OG = round_to_nearest(weight_OI, 8, 2, torch.float32)
    assert torch.allclose(scale_OG, torch.tensor([[1.0, 2.0], [0.01, 0.1]]))
    assert values_OI[0].tolist() == [0, -128, 0, 127] and values_OI[1, [1, 3]].tolist() == [0, 10]


def test_a_narrower_range_leaves_less_error_at_4_bits(monkeypatch: pytest.MonkeyPatch):
    weight_OI = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))

    def error() -> float:
        values_OI, scale_OG = round_to_nearest(weight_OI, 4, 128, torch.bfloat16)
        return ((dequantize(values_OI, scale_OG) - weight_OI).norm() / weight_OI.norm()).item()

    searched = error()
    monkeypatch.setattr(rounding, "CLIPS", (1.0,))
    assert searched < 0.95 * error()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_that_are_all_zero_stay_zero(bits, dtype):
    values_OI, scale_OG = round_to_nearest(torch.zeros(2, 32), bits, 16, dtype)
    assert not values_OI.any() and (scale_OG == 1).all()
