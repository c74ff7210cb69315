"""Every family computes here what it computes in transformers, whole and token by token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from llmos.core.capacity import ModelShape
from llmos.models import ModelConfig, Transformer, transformer, weights
from llmos.models.headers import Form, forms
from llmos.models.transformer import first_visible
from tests.unit.models.families import NAMES, WINDOW, family_config, write_family

LENGTH, ANSWER = 80, 64
READS = ["llama2", "llama3", "llama-yarn-mscale", "mistral", "qwen2", "qwen2-window", "qwen3-untied-yarn"]
OWN = ["mistral", "qwen2", "qwen3"]
"""One of each family that is not Llama."""

Both = Callable[[str], tuple[Any, Transformer, Path]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """transformers' model, ours from its files, and where they are; made once."""
    made: dict[str, tuple[Any, Transformer, Path]] = {}

    def make(name: str) -> tuple[Any, Transformer, Path]:
        if name not in made:
            directory = tmp_path_factory.mktemp(name)
            made[name] = write_family(name, directory), weights.load_model(directory), directory
        return made[name]

    return make


def _tokens(rows: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(0, 300, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_logits_are_those_of_transformers(name: str, both: Both) -> None:
    theirs, ours, _ = both(name)
    logits_BTV = ours(_tokens())
    assert logits_BTV.std() > 0.5  # far from uniform: what follows compares something
    assert (theirs(_tokens()).logits - logits_BTV).abs().max() <= 1e-4


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_greedy_answer_is_that_of_transformers(name: str, both: Both) -> None:
    """Each token is the one transformers finds likeliest after those before it."""
    theirs, ours, _ = both(name)
    text_1T = _greedy(ours, _tokens(1, 9))
    assert torch.equal(theirs(text_1T).logits[0, 8:-1].argmax(-1), text_1T[0, 9:])
    assert len(text_1T[0, 9:].unique()) > 5


@torch.no_grad()
def test_a_greedy_answer_is_what_transformers_generates(both: Both) -> None:
    theirs, ours, _ = both("mistral")
    asked = {"max_new_tokens": ANSWER, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(theirs.generate(_tokens(1, 9), **asked), _greedy(ours, _tokens(1, 9)))


@pytest.mark.parametrize("name", READS)
@torch.no_grad()
def test_transformers_reads_our_files(name: str, both: Both, tmp_path: Path) -> None:
    _, ours, _ = both(name)
    weights.save_model(ours, tmp_path)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()) and type(theirs.config) is type(family_config(name))
    assert ModelConfig.from_hf(theirs.config.to_dict()) == ours.config
    assert (theirs.eval()(_tokens()).logits - ours(_tokens())).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["llama3", *OWN])
def test_gradients_are_those_of_transformers(name: str, both: Both) -> None:
    theirs, ours, _ = both(name)
    parameters, expected = dict(ours.named_parameters()), dict(theirs.named_parameters())
    losses = (_loss(ours(_tokens())), _loss(theirs(_tokens()).logits))
    found = [
        torch.autograd.grad(loss, [kind[key] for key in parameters])
        for loss, kind in zip(losses, (parameters, expected), strict=True)
    ]
    for mine, reference in zip(*found, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["llama3", "qwen2", "qwen3"])
@torch.no_grad()
def test_bf16_is_as_close_to_fp32_as_theirs(name: str, both: Both) -> None:
    _, exact, directory = both(name)
    ours = weights.load_model(directory, dtype=torch.bfloat16)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
    found = (ours(_tokens()), theirs(_tokens()).logits)
    error, their_error = ((logits - exact(_tokens())).abs().mean() for logits in found)
    assert error <= 1.2 * their_error


@pytest.mark.parametrize("longest_block", [2048, 0], ids=["block attention", "scaled_dot_product_attention"])
@pytest.mark.parametrize("name", OWN)
@torch.no_grad()
def test_packed_documents_are_computed_as_if_alone(
    name: str, longest_block: int, both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer, "MAX_TOKENS", longest_block)
    _, ours, _ = both(name)
    lengths = [1, 33, 3, 43]
    begins_1T = torch.tensor([0, 1, 34, 37]).repeat_interleave(torch.tensor(lengths))[None]
    packed = F.linear(ours.hidden(_tokens(1), documents_BT=begins_1T), ours.output_weight)
    alone = torch.cat([ours(document) for document in _tokens(1).split(lengths, dim=1)], dim=1)
    assert (packed - alone).abs().max() < 1e-5 * alone.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_those_of_the_files(name: str, both: Both) -> None:
    _, ours, _ = both(name)
    parameters = dict(ours.named_parameters())
    count = sum(parameter.numel() for parameter in parameters.values())
    assert ours.config.num_parameters == ModelShape.of(ours.config).num_parameters == count
    assert forms(ours.config) == {key: Form(tuple(parameter.shape)) for key, parameter in parameters.items()}


def test_autocast_keeps_queries_and_keys_in_bf16(both: Both) -> None:
    """A bias in fp32 must not widen what it is added to: attention would then be computed in fp32."""
    _, ours, _ = both("qwen2")
    attention = ours.model.layers[0].self_attn
    with torch.autocast("cpu", torch.bfloat16):
        assert attention.q_proj(torch.randn(1, 3, 64)).dtype is torch.bfloat16


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


def test_new_biases_are_zero() -> None:
    config = ModelConfig.from_hf(family_config("qwen2").to_dict())
    biases = [p for name, p in Transformer(config).named_parameters() if name.endswith(".bias")]
    assert len(biases) == 3 * config.num_layers and not any(bias.any() for bias in biases)


def _loss(logits_BTV: Tensor) -> Tensor:
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), _tokens()[:, 1:].flatten())


def _greedy(model: Transformer, prompt_1T: Tensor) -> Tensor:
    """The prompt and an answer of ANSWER tokens, one at a time, [1, T]."""
    for _ in range(ANSWER):
        prompt_1T = torch.cat((prompt_1T, model(prompt_1T)[:, -1:].argmax(-1)), dim=1)
    return prompt_1T
