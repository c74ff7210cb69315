"""Adapters: what they compute, what is trained, and what is left of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmos.models import ModelConfig, Transformer
from llmos.models.adapter import LoraLinear
from llmos.spec import Lora
from llmos.train.lora import add_adapters, merged, save_adapter, trainable

CONFIG = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position=64,
    bos_token_id=0,
    eos_token_id=0,
)
TOKENS = torch.arange(40).reshape(2, 20)


def _adapted(spec: Lora, trained: bool = True, config: ModelConfig = CONFIG) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(config)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter)
    add_adapters(model, spec, seed=1)
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            if trained and name.endswith("lora_B"):
                parameter.normal_(std=0.1)
    return model


def test_it_begins_as_the_model_it_adapts() -> None:
    torch.manual_seed(0)
    plain = Transformer(CONFIG)
    assert torch.equal(_adapted(Lora(), trained=False)(TOKENS), plain(TOKENS))


def test_biases_stay_as_they_are() -> None:
    config = dataclasses.replace(CONFIG, architecture="qwen2", attention_bias=True)
    model = _adapted(Lora(rank=3), config=config)
    assert not [name for name in trainable(model) if name.endswith("bias")]
    plain, expected = merged(model), model(TOKENS)
    assert (plain(TOKENS) - expected).abs().max() < 1e-5 * expected.abs().max()
    with torch.no_grad():
        plain.model.layers[0].self_attn.v_proj.bias.zero_()
    assert (plain(TOKENS) - expected).abs().max() > 0.1 * expected.abs().max()


def test_merged_weights_compute_the_same() -> None:
    model = _adapted(Lora(rank=3, alpha=12.0))
    plain = merged(model)
    assert [name for name, _ in plain.named_parameters()] == [
        name for name, _ in Transformer(CONFIG).named_parameters()
    ]
    expected = model(TOKENS)
    assert (plain(TOKENS) - expected).abs().max() < 1e-5 * expected.abs().max()
    untouched = _adapted(Lora(rank=3, alpha=12.0), trained=False)
    assert (untouched(TOKENS) - expected).abs().max() > 0.1 * expected.abs().max()
    with torch.no_grad():
        change = plain.model.layers[1].mlp.up_proj.weight - model.model.layers[1].mlp.up_proj.weight
    assert torch.linalg.matrix_rank(change) == 3


def test_so_many_parameters_are_trained_and_no_others_change() -> None:
    spec = Lora(rank=4, targets=("q_proj", "v_proj", "down_proj"))
    model = _adapted(spec)
    shapes = ((32, 32), (32, 16), (48, 32))  # in, out of each target
    assert sum(p.numel() for p in trainable(model).values()) == 2 * sum(4 * (i + o) for i, o in shapes)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if name not in trainable(model)}
    optimizer = torch.optim.SGD(trainable(model).values(), lr=1.0)
    model(TOKENS).logsumexp(-1).sum().backward()
    optimizer.step()
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], before) for name, before in frozen.items())
    assert sum(isinstance(module, LoraLinear) for module in model.modules()) == 6


def test_an_adapter_by_itself_is_in_the_layout_of_peft(tmp_path: Path) -> None:
    spec = Lora(rank=2, alpha=5.0, targets=("k_proj", "gate_proj"))
    model = _adapted(spec)
    save_adapter(model, spec, "base@1", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 5.0, ["gate_proj", "k_proj"])
    tensors, plain = (
        load_file(tmp_path / "adapter" / "adapter_model.safetensors"),
        dict(merged(model).named_parameters()),
    )
    assert len(tensors) == 2 * 2 * 2
    # as PEFT applies it: W + alpha / r · B · A
    for name, matrix in tensors.items():
        path, _, kind = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        if kind == "lora_A":
            base = model.get_parameter(f"{path}.weight")
            whole = base + 5.0 / 2 * tensors[name.replace("lora_A", "lora_B")] @ matrix
            assert torch.allclose(whole, plain[f"{path}.weight"], atol=1e-6)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_seed_determines_adapters(seed: int) -> None:
    first, second = _adapted(Lora()), Transformer(CONFIG)
    add_adapters(second, Lora(), seed)
    name = "model.layers.0.mlp.up_proj.lora_A"
    assert torch.equal(first.get_parameter(name), second.get_parameter(name)) == (seed == 1)
