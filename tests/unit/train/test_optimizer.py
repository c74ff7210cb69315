from typing import Any

import pytest
import torch
from torch import nn

from llmos.errors import CheckpointError
from llmos.parallel.mesh import Line
from llmos.spec import Optimizer as Spec
from llmos.train import muon
from llmos.train.muon import orthogonal
from llmos.train.optimizer import Optimizer


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(11, 8)
        self.hidden = nn.Linear(8, 16, bias=False)
        self.norm = nn.LayerNorm(16, bias=False)


def _model(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small()


def _optimizer(model: Small, spec: Spec, rounded: torch.dtype | None = None) -> Optimizer:
    return Optimizer(dict(model.named_parameters()), spec, Line(), rounded)


def _gradients(model: Small) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(parameter.shape, generator=generator) for parameter in model.parameters()]


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_state_round_trips_exactly(name: str) -> None:
    spec = Spec(name=name)
    model, copy = _model(), _model()
    first, second = _optimizer(model, spec), _optimizer(copy, spec)
    first.step(1e-2, _gradients(model))
    for name, weight in second.weights.items():
        weight.copy_(first.weights[name])
    second.load_state({key: value.clone() for key, value in first.state().items()})
    first.step(3e-3, _gradients(model))
    second.step(3e-3, _gradients(model))
    for ours, theirs in zip(model.parameters(), copy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_only_matrices_decay() -> None:
    model = _model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    _optimizer(model, Spec(weight_decay=0.5)).step(0.1, [torch.zeros_like(p) for p in model.parameters()])
    assert torch.allclose(model.hidden.weight, before["hidden.weight"] * 0.95)
    assert torch.equal(model.norm.weight, before["norm.weight"])


def test_muon_moves_hidden_matrices_only_and_as_far_as_adamw_would() -> None:
    moved = {}
    for name in ("adamw", "muon"):
        model = _model()
        before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        _optimizer(model, Spec(name=name, weight_decay=0.0)).step(1e-2, _gradients(model))
        moved[name] = {key: parameter.detach() - before[key] for key, parameter in model.named_parameters()}
    for outer in ("embed_tokens.weight", "norm.weight"):
        assert torch.equal(moved["adamw"][outer], moved["muon"][outer])
    update = moved["muon"]["hidden.weight"]
    # orthogonal up to a factor: all singular values alike (Newton-Schulz leaves them within about 0.7 and 1.2)
    values = torch.linalg.svdvals(update)
    assert values.max() / values.min() < 2
    # arXiv 2502.16982: 0.2 × learning rate, the size of AdamW's usual update (its very first is larger)
    assert update.square().mean().sqrt() == pytest.approx(0.2e-2, rel=0.3)


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_muon_computes_in_what_the_hardware_has(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, dtype: torch.dtype
) -> None:
    """Emulated, a product in bf16 took 23 times as long as one in fp32."""
    seen: list[torch.dtype] = []
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16})
    monkeypatch.setattr(muon, "orthogonal", lambda x: (seen.append(x.dtype), orthogonal(x))[1])
    model = _model()
    _optimizer(model, Spec(name="muon")).step(1e-2, _gradients(model))
    assert seen == [dtype]


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("adamw", lambda groups: torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), fused=True)),
        ("sgd", lambda groups: torch.optim.SGD(groups, lr=1.0, momentum=0.9, fused=True)),
    ],
)
def test_it_is_torchs_to_the_bit(name: str, reference: Any) -> None:
    model, theirs = _model(), _model()
    matrices, norm = [theirs.embed_tokens.weight, theirs.hidden.weight], [theirs.norm.weight]
    torchs = reference([{"params": matrices, "weight_decay": 0.1}, {"params": norm, "weight_decay": 0.0}])
    ours = _optimizer(model, Spec(name=name))
    for number in range(4):
        gradients = [gradient * (number + 1) for gradient in _gradients(model)]
        for parameter, gradient in zip(theirs.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        for group in torchs.param_groups:
            group["lr"] = 0.01 / (number + 1)
        torchs.step()
        ours.step(0.01 / (number + 1), gradients)
    for mine, other in zip(model.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    for key, value in ours.state().items():
        path, _, what = key.rpartition("/")
        assert torch.equal(value, torchs.state[theirs.get_parameter(path)][what]), key


def test_sgd_with_momentum_is_the_formula() -> None:
    model = _model()
    before, (gradient, *_) = model.embed_tokens.weight.detach().clone(), _gradients(model)
    optimizer = _optimizer(model, Spec(name="sgd", momentum=0.5, weight_decay=0.0))
    for _ in range(2):
        optimizer.step(0.1, _gradients(model))
    assert torch.allclose(model.embed_tokens.weight, before - 0.1 * gradient - 0.1 * 1.5 * gradient)


def test_rounded_weights_follow_a_copy_that_is_not() -> None:
    model, exact = _model(), _model()
    optimizer, reference = _optimizer(model, Spec(), rounded=torch.bfloat16), _optimizer(exact, Spec())
    for _ in range(20):  # steps too small for bf16 to see one by one
        optimizer.step(1e-5, _gradients(model))
        reference.step(1e-5, _gradients(model))
    for name, parameter in model.named_parameters():
        assert torch.equal(optimizer.weights[name], reference.weights[name])
        assert torch.equal(parameter, reference.weights[name].bfloat16())


def test_state_of_another_model_is_refused() -> None:
    optimizer = _optimizer(_model(), Spec())
    with pytest.raises(CheckpointError, match=r"does not fit the model: .*norm.weight"):
        optimizer.load_state({"hidden.weight/exp_avg": torch.zeros(16, 8)})
