"""Packed values against the layout's own definition: value i of a row is in bits i · bits … of the row."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmos.errors import ModelError
from llmos.models import packed_layout


def by_definition(packed_OW: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """The whole numbers in ``packed_OW``, each row read as one long number."""
    rows = [sum((int(word) & 0xFFFFFFFF) << (32 * at) for at, word in enumerate(row)) for row in packed_OW]
    mask, offset = (1 << bits) - 1, 1 << (bits - 1)
    return np.array([[((row >> (bits * i)) & mask) - offset for i in range(columns)] for row in rows])


@given(st.sampled_from([4, 8]), st.integers(1, 3), st.integers(1, 41), st.integers(0, 2**32 - 1))
def test_packing_is_the_layouts_definition_and_unpacking_undoes_it(bits, rows, columns, seed):
    random = np.random.default_rng(seed)
    values = random.integers(-(1 << (bits - 1)), 1 << (bits - 1), (rows, columns), dtype=np.int8)
    packed = packed_layout.pack(torch.from_numpy(values), bits)
    assert packed.dtype == torch.int32 and packed.shape == (rows, packed_layout.words(columns, bits))
    np.testing.assert_array_equal(by_definition(packed.numpy(), bits, columns), values)
    np.testing.assert_array_equal(packed_layout.unpack(packed, bits, columns).numpy(), values)


def test_the_lowest_bits_of_the_first_word_are_the_first_columns():
    values = torch.tensor([[-8, 7, 0, 1, 0, 0, 0, 0, 5]], dtype=torch.int8)
    packed = packed_layout.pack(values, 4)
    assert [hex(word & 0xFFFFFFFF) for word in packed[0].tolist()] == ["0x888898f0", "0xd"]


def test_stored_bytes_are_a_view_with_the_even_column_in_the_low_half():
    packed = packed_layout.pack(torch.tensor([[-8, 7, 0, 1, 0, 0, 0, 0]], dtype=torch.int8), 4)
    stored = packed_layout.stored_bytes(packed, 4, 8)
    assert stored.tolist() == [[0xF0, 0x98, 0x88, 0x88]]
    assert stored.data_ptr() == packed.data_ptr()


def test_each_scale_is_that_of_its_own_columns():
    values = torch.tensor([[1, 2, 3, 4], [-1, -2, -3, -4]], dtype=torch.int8)
    scale = torch.tensor([[1.0, 10.0], [2.0, 0.5]], dtype=torch.bfloat16)
    weights = packed_layout.dequantize(values, scale)
    assert weights.tolist() == [[1, 2, 30, 40], [-2, -4, -1.5, -2]] and weights.dtype == torch.float32


def test_a_big_endian_machine_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(ModelError, match="little-endian"):
        packed_layout.pack(torch.zeros(1, 8, dtype=torch.int8), 4)
