import pytest
import torch
from torch.nn import functional

from llmos.train import loss


@pytest.mark.parametrize("rows", [1, 7, 16])
def test_equals_torch_with_gradients(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK", 7)
    torch.manual_seed(0)
    hidden = torch.randn(rows, 12, requires_grad=True)
    weight = torch.randn(30, 12, requires_grad=True)
    targets = torch.randint(0, 30, (rows,))
    targets[1::3] = -1
    ours = loss.cross_entropy_sum(hidden, weight, targets, 0.5) * 3
    theirs = functional.cross_entropy(hidden @ weight.T, targets, ignore_index=-1, reduction="sum") * 1.5
    assert torch.allclose(ours, theirs, rtol=1e-5)
    for mine, reference in zip(
        torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(theirs, (hidden, weight)), strict=True
    ):
        assert torch.allclose(mine, reference, atol=1e-5)


def test_huge_logits_stay_finite_and_nan_shows() -> None:
    hidden, weight = torch.tensor([[1e4]]), torch.tensor([[1.0], [-1.0]])
    assert loss.cross_entropy_sum(hidden, weight, torch.tensor([1])) == 2e4
    assert loss.cross_entropy_sum(hidden * torch.nan, weight, torch.tensor([1])).isnan()
