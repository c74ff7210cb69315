"""The same files give the same logits here and in transformers' LlamaForCausalLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llmos.models import weights
from llmos.models.config import ModelConfig
from tests.unit.models.small import SCALING, SMALL, make

VARIANTS: dict[str, dict[str, Any]] = {
    "tied, grouped": {},
    "untied": {"tie_embeddings": False},
    "one key head per query head": {"num_kv_heads": 8},
    "heads wider than the stream": {"head_dim": 24},
    "llama3 scaling": {"rope_scaling": SCALING, "rope_theta": 500000.0},
}
LENGTH = 120  # beyond SCALING's original context, and several blocks of attention


def _tokens() -> torch.Tensor:
    return torch.randint(0, SMALL.vocab_size, (3, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_transformers_computes_the_same_from_our_files(tmp_path: Path, changes: dict[str, Any]) -> None:
    ours = make(**changes)
    weights.save_model(ours, tmp_path)
    theirs, report = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    logits = ours(_tokens())
    assert logits.std() > 0.5  # far from uniform: what follows compares something
    assert (theirs.eval()(_tokens()).logits - logits).abs().max() <= 1e-4


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_we_compute_the_same_from_their_files(tmp_path: Path, changes: dict[str, Any]) -> None:
    ours = make(**changes)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**ours.config.to_hf())).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    theirs.tie_weights()
    theirs.save_pretrained(tmp_path)
    assert "rope_parameters" in json.loads((tmp_path / "config.json").read_text())  # as transformers 5 writes it
    loaded = weights.load_model(tmp_path)
    assert loaded.config == ours.config
    assert (loaded(_tokens()) - theirs(_tokens()).logits).abs().max() <= 1e-4


@torch.no_grad()
def test_bf16_is_as_close_to_fp32_as_theirs(tmp_path: Path) -> None:
    weights.save_model(make(), tmp_path, dtype=torch.bfloat16)
    exact = weights.load_model(tmp_path, dtype=torch.float32)(_tokens())
    ours = weights.load_model(tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert ours.output_weight.dtype is torch.bfloat16
    error, their_error = ((model - exact).abs().mean() for model in (ours(_tokens()), theirs(_tokens()).logits))
    assert error <= 1.2 * their_error


def test_gradients_are_theirs(tmp_path: Path) -> None:
    ours = make()
    weights.save_model(ours, tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    for logits in (ours(_tokens()), theirs(_tokens()).logits):
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), _tokens()[:, 1:].flatten()).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-5)


def test_their_config_is_ours_and_back() -> None:
    theirs = transformers.LlamaConfig(**ModelConfig.from_hf(SMALL.to_hf()).to_hf())
    assert ModelConfig.from_hf(theirs.to_dict()) == SMALL
    assert ModelConfig.from_hf(json.loads(theirs.to_json_string(use_diff=False))) == SMALL
