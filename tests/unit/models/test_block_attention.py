from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from llmos.models.block_attention import block_attention


@pytest.mark.parametrize("length", [1, 5, 32, 100, 600])
def test_equals_torch_with_gradients(length: int) -> None:
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, length, 16, dtype=torch.float64, requires_grad=True) for heads in (8, 2, 2)
    )
    ours = block_attention(query, key, value)
    theirs = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    assert torch.allclose(ours, theirs, atol=1e-12)
    direction = torch.randn_like(ours)
    for mine, reference in zip(
        torch.autograd.grad(ours, (query, key, value), direction),
        torch.autograd.grad(theirs, (query, key, value), direction),
        strict=True,
    ):
        assert torch.allclose(mine, reference, atol=1e-12)


def test_keeps_the_type_of_the_values_under_autocast() -> None:
    query, key, value = torch.randn(1, 4, 9, 8), torch.randn(1, 4, 9, 8), torch.randn(1, 4, 9, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert block_attention(query, key, value).dtype is torch.bfloat16


@pytest.mark.parametrize("length", [5, 100, 600])
def test_documents_are_as_good_as_alone_with_gradients(length: int) -> None:
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, length, 16, dtype=torch.float64, requires_grad=True) for heads in (8, 2, 2)
    )
    cuts = [[0, 2, length // 2, length], [0, length]]  # three documents in one row, one in the other
    documents = torch.stack([torch.repeat_interleave(torch.tensor(c[:-1]), torch.tensor(c).diff()) for c in cuts])
    packed = block_attention(query, key, value, documents)
    alone = torch.cat(
        [torch.cat([_alone(query, key, value, row, c) for c in pairwise(cuts[row])], 2) for row in (0, 1)]
    )
    assert torch.allclose(packed, alone, atol=1e-12)
    direction = torch.randn_like(packed)
    for mine, reference in zip(
        torch.autograd.grad(packed, (query, key, value), direction),
        torch.autograd.grad(alone, (query, key, value), direction),
        strict=True,
    ):
        assert torch.allclose(mine, reference, atol=1e-12)


def _alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, row: int, cut: tuple[int, int]) -> torch.Tensor:
    part = (slice(row, row + 1), slice(None), slice(*cut))
    return functional.scaled_dot_product_attention(q[part], k[part], v[part], is_causal=True, enable_gqa=True)
