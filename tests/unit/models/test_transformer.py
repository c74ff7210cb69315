"""What the model promises about its own computation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmos.models import ModelConfig, Transformer, transformer
from llmos.models.norm import RMSNorm
from llmos.spec import PRESETS
from tests.unit.models.small import SMALL, make


def _tokens(rows: int = 2, length: int = 40) -> Tensor:
    return torch.randint(0, SMALL.vocab_size, (rows, length), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_a_token_sees_only_those_before_it() -> None:
    model, tokens = make(), _tokens()
    changed = tokens.clone()
    changed[:, 25] = (changed[:, 25] + 1) % SMALL.vocab_size
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :25], after[:, :25])
    assert (before[:, 25:] - after[:, 25:]).abs().amax(-1).min() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("longest_block", [2048, 0], ids=["block attention", "scaled_dot_product_attention"])
def test_packed_documents_are_computed_as_if_alone(longest_block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "MAX_TOKENS", longest_block)
    model, tokens, lengths = make(), _tokens(1, 70), [1, 33, 3, 33]
    begins = torch.tensor([0, 1, 34, 37]).repeat_interleave(torch.tensor(lengths))[None]
    packed = F.linear(model.hidden(tokens, documents_BT=begins), model.output_weight)
    alone = torch.cat([model(document) for document in tokens.split(lengths, dim=1)], dim=1)
    assert (packed - alone).abs().max() < 1e-5 * alone.abs().max()
    assert (packed - model(tokens)).abs().max() > 0.1


@torch.no_grad()
def test_only_distances_matter() -> None:
    model, tokens = make(), _tokens()
    shifted = model(tokens, positions=torch.arange(100, 140))
    assert (shifted - model(tokens)).abs().max() < 1e-3
    stretched = model(tokens, positions=torch.arange(0, 80, 2).expand(2, -1))
    assert (stretched - model(tokens)).abs().max() > 0.1


@torch.no_grad()
def test_hidden_and_the_output_matrix_make_the_logits() -> None:
    for tied in (True, False):
        model = make(tie_embeddings=tied)
        assert torch.equal(model.hidden(_tokens()) @ model.output_weight.T, model(_tokens()))


@torch.no_grad()
def test_long_texts_take_torchs_kernel_and_get_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, blocks = make(), make()(_tokens())
    monkeypatch.setattr(transformer, "MAX_TOKENS", 39)
    monkeypatch.delattr(transformer, "block_attention")
    torch.testing.assert_close(model(_tokens()), blocks, rtol=1e-4, atol=1e-4)


def test_a_seed_determines_the_weights() -> None:
    def drawn(seed: int) -> dict[str, Tensor]:
        model = Transformer(SMALL)
        model.reset_parameters(torch.Generator().manual_seed(seed))
        return model.state_dict()

    first, again, other = drawn(5), drawn(5), drawn(6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    torch.manual_seed(9)
    fresh = Transformer(SMALL).output_weight
    torch.manual_seed(9)
    assert torch.equal(Transformer(SMALL).output_weight, fresh)


def test_new_weights_have_the_promised_spread() -> None:
    config = ModelConfig.from_preset(PRESETS["tiny"], 1000, bos=0, eos=0)
    torch.manual_seed(0)
    state = Transformer(config).state_dict()
    assert state["model.layers.2.mlp.up_proj.weight"].std() == pytest.approx(0.02, rel=0.02)
    assert state["model.layers.2.mlp.down_proj.weight"].std() == pytest.approx(0.02 / math.sqrt(6), rel=0.02)
    assert state["model.layers.2.self_attn.o_proj.weight"].std() == pytest.approx(0.02 / math.sqrt(6), rel=0.02)
    assert torch.equal(state["model.norm.weight"], torch.ones(256))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("tied", [True, False])
def test_num_parameters_is_what_the_model_has(name: str, tied: bool) -> None:
    shape = {**ModelConfig.from_preset(PRESETS[name], 500, None, None).to_hf(), "tie_word_embeddings": tied}
    config = ModelConfig.from_hf(shape)
    with torch.device("meta"):
        model = Transformer(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert ("lm_head.weight" in model.state_dict()) is not tied
    assert sum(parameter.numel() for parameter in model.parameters()) == config.num_parameters


def test_autocast_computes_in_bf16_and_keeps_weights_in_fp32() -> None:
    model = make()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.hidden(_tokens())
    assert hidden.dtype is torch.bfloat16
    torch.testing.assert_close(hidden.float(), model.hidden(_tokens()), rtol=0.1, atol=0.15)
    hidden.float().square().mean().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_and_its_gradient_are_those_of_the_formula(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(48, 1e-5)
    with torch.no_grad():
        norm.weight.normal_(1, 0.3)
    x, d_out = torch.randn(2, 5, 48, dtype=dtype, requires_grad=True), torch.randn(2, 5, 48, dtype=dtype)
    ours = torch.autograd.grad(norm(x), (x, norm.weight), d_out)
    x32 = x.float()
    formula = x32 / (x32.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    expected = torch.autograd.grad(formula, (x, norm.weight), d_out.float())
    torch.testing.assert_close(norm(x), formula.to(dtype))
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
