"""Every family computes here what it computes in transformers, whole and token by token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from llmos.models import KVCache, ModelConfig, Transformer, weights
from llmos.models.transformer import first_visible
from tests.unit.models.families import NAMES, WINDOW, family_config, write_family

LENGTH, ANSWER = 80, 64


def _tokens(vocab_size: int, rows: int = 2) -> torch.Tensor:
    return torch.randint(0, vocab_size, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = write_family(name, tmp_path)
    ours = weights.load_model(tmp_path)
    tokens_BT = _tokens(ours.config.vocab_size)
    logits_BTV = ours(tokens_BT)
    assert logits_BTV.std() > 0.5  # far from uniform: what follows compares something
    assert (theirs(tokens_BT).logits - logits_BTV).abs().max() <= 1e-4
    assert ours.config.num_parameters == sum(parameter.numel() for parameter in ours.parameters())


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_greedy_answer_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = write_family(name, tmp_path)
    ours, prompt_1T = weights.load_model(tmp_path), _tokens(300, rows=1)[:, :9]
    told = theirs.generate(prompt_1T, max_new_tokens=ANSWER, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert _greedy(ours, prompt_1T) == told[0].tolist()


@pytest.mark.parametrize("name", ["llama-yarn-mscale", "mistral", "qwen2-window", "qwen3"])
@torch.no_grad()
def test_transformers_reads_our_files(name: str, tmp_path: Path) -> None:
    write_family(name, tmp_path / "theirs")
    ours = weights.load_model(tmp_path / "theirs")
    weights.save_model(ours, tmp_path / "ours")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()) and type(theirs.config) is type(family_config(name))
    tokens_BT = _tokens(ours.config.vocab_size)
    assert (theirs.eval()(tokens_BT).logits - ours(tokens_BT)).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3"])
def test_gradients_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = write_family(name, tmp_path)
    ours = weights.load_model(tmp_path)
    tokens_BT = _tokens(ours.config.vocab_size)
    for logits in (ours(tokens_BT), theirs(tokens_BT).logits):
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
    expected = dict(theirs.named_parameters())
    for name_, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name_].grad, rtol=1e-3, atol=1e-4)


def test_a_window_and_a_document_end_what_is_seen() -> None:
    config = ModelConfig.from_hf(family_config("mistral").to_dict())
    tokens_1T = torch.zeros(1, 3 * WINDOW, dtype=torch.long)
    alone = first_visible(config, None, tokens_1T)
    assert alone is not None and alone[0, WINDOW - 1] == 0 and alone[0, WINDOW] == 1
    documents_1T = torch.where(torch.arange(3 * WINDOW) < WINDOW + 5, 0, WINDOW + 5)[None]
    both = first_visible(config, documents_1T, tokens_1T)
    assert both is not None and both[0, WINDOW + 4] == 5 and both[0, WINDOW + 6] == WINDOW + 5
    assert first_visible(config, documents_1T[:, :WINDOW], tokens_1T[:, :WINDOW]) is not None
    assert first_visible(config, None, tokens_1T[:, :WINDOW]) is None


def test_new_biases_are_zero_and_new_norms_one() -> None:
    config = ModelConfig.from_hf(family_config("qwen2").to_dict())
    biases = [p for name, p in Transformer(config).named_parameters() if name.endswith(".bias")]
    assert len(biases) == 3 * config.num_layers and not any(bias.any() for bias in biases)


def _greedy(model: Transformer, prompt_1T: torch.Tensor) -> list[int]:
    cache = KVCache(model.config, 1, LENGTH)
    cache.add()
    found, new_1T = prompt_1T[0].tolist(), prompt_1T
    for _ in range(ANSWER):
        logits_1TV = model(new_1T, cache=cache.step([new_1T.shape[1]]))
        found.append(int(logits_1TV[0, -1].argmax()))
        new_1T = torch.tensor([found[-1:]])
    return found
