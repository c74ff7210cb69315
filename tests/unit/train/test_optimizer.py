import pytest
import torch
from torch import nn

from llmos.errors import CheckpointError
from llmos.parallel.world import World
from llmos.spec import Optimizer as Spec
from llmos.train.optimizer import Optimizer


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(11, 8)
        self.hidden = nn.Linear(8, 16, bias=False)
        self.norm = nn.LayerNorm(16, bias=False)


def _model(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    model = Small()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_round_trips_exactly(name: str) -> None:
    spec = Spec(name=name)
    model, copy = _model(), _model()
    first = Optimizer(model, spec, World())
    first.step(1e-2)
    copy.load_state_dict(model.state_dict())
    second = Optimizer(copy, spec, World())
    second.load_state({key: value.clone() for key, value in first.state().items()})
    first.step(3e-3)
    second.step(3e-3)
    for ours, theirs in zip(model.parameters(), copy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_only_matrices_decay() -> None:
    model = _model()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    Optimizer(model, Spec(weight_decay=0.5), World()).step(0.1)
    assert torch.allclose(model.hidden.weight, before["hidden.weight"] * 0.95)
    assert torch.equal(model.norm.weight, before["norm.weight"])


def test_muon_moves_hidden_matrices_only_and_as_far_as_adamw_would() -> None:
    moved = {}
    for name in ("adamw", "muon"):
        model = _model()
        before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        Optimizer(model, Spec(name=name, weight_decay=0.0), World()).step(1e-2)
        moved[name] = {key: parameter.detach() - before[key] for key, parameter in model.named_parameters()}
    for outer in ("embed_tokens.weight", "norm.weight"):
        assert torch.equal(moved["adamw"][outer], moved["muon"][outer])
    update = moved["muon"]["hidden.weight"]
    # orthogonal up to a factor: all singular values alike (Newton-Schulz leaves them within about 0.7 and 1.2)
    values = torch.linalg.svdvals(update)
    assert values.max() / values.min() < 2
    # arXiv 2502.16982: 0.2 × learning rate, the size of AdamW's usual update (its very first is larger)
    assert update.square().mean().sqrt() == pytest.approx(0.2e-2, rel=0.3)


def test_state_of_another_model_is_refused() -> None:
    optimizer = Optimizer(_model(), Spec(), World())
    with pytest.raises(CheckpointError, match=r"does not fit the model: .*norm.weight"):
        optimizer.load_state({"hidden.weight/exp_avg": torch.zeros(16, 8)})
