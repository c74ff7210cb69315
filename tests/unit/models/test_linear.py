"""Products of training on CPUs: what they are computed by, and that it makes no difference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llmos.models import linear
from llmos.models.linear import Linear


@pytest.fixture(autouse=True)
def with_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "FASTER", linear.PRODUCT is not None)  # whatever this machine's processor prefers


@pytest.fixture
def layer() -> Linear:
    torch.manual_seed(0)
    return Linear(24, 40)


def _made_by(y: torch.Tensor) -> str:
    assert y.grad_fn is not None
    return y.grad_fn.name()


def test_value_and_gradients_are_those_of_torch(layer: Linear) -> None:
    x, d_out = torch.randn(2, 5, 24, requires_grad=True), torch.randn(2, 5, 40)
    y, expected = layer(x), F.linear(x, layer.weight)
    assert _made_by(y).startswith("_Product") == (linear.PRODUCT is not None) and y.shape == expected.shape
    torch.testing.assert_close(y, expected)
    found = torch.autograd.grad(y, (x, layer.weight), d_out)
    for mine, theirs in zip(found, torch.autograd.grad(expected, (x, layer.weight), d_out), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_frozen_weights_have_no_gradient(layer: Linear) -> None:
    layer.requires_grad_(False)
    x = torch.randn(3, 24, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None


def test_all_else_is_left_to_torch(layer: Linear) -> None:
    x = torch.randn(3, 24)
    with torch.no_grad():
        assert torch.equal(layer(x), F.linear(x, layer.weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16
    assert not _made_by(layer.to(torch.bfloat16)(x.bfloat16())).startswith("_Product")
    layer.float().whole_backward = False  # schedules that put off the gradients of weights
    assert not _made_by(layer(x)).startswith("_Product")
