"""Encoders: the same vectors as transformers, whatever texts are beside each other; wrong files are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmos.errors import ModelError, UnsupportedModelError, UsageError
from llmos.models.encoder import Encoder
from llmos.models.encoder_config import EncoderConfig, is_encoder
from llmos.models.encoder_tokenizer import EncoderTokenizer
from tests.unit.models.encoders import SHAPE, write_encoder
from tests.unit.models.small import make

TEXTS = [(2, 4, 5, 6, 3), (2, 9, 3), (2, 4, 5, 6, 7, 8, 9, 10, 11, 3), (2, 7, 3), (2, 12, 13, 14, 15, 3)]


def theirs(model: Any, text: tuple[int, ...], pooling: str, normalize: bool) -> torch.Tensor:
    """One text alone in transformers, pooled by hand."""
    base = getattr(model, model.base_model_prefix, model)
    with torch.no_grad():
        hidden_LD = base(input_ids=torch.tensor([text]), attention_mask=torch.ones(1, len(text))).last_hidden_state[0]
    vector_D = hidden_LD[0] if pooling == "cls" else hidden_LD.mean(0)
    return vector_D / vector_D.norm() if normalize else vector_D


@pytest.mark.parametrize(
    ("options", "pooling", "normalize"),
    [
        ({}, "mean", True),
        ({"pooling": "cls", "normalize": False}, "cls", False),
        ({"pooling": None}, "mean", True),
        ({"family": "bert", "head": "ForMaskedLM"}, "mean", True),
        ({"family": "roberta", "config": {"type_vocab_size": 1, "pad_token_id": 1}}, "mean", True),
        ({"family": "xlm-roberta", "head": "ForMaskedLM", "config": {"hidden_act": "gelu_new"}}, "mean", True),
        ({"config": {"hidden_act": "relu", "layer_norm_eps": 1e-5}}, "mean", True),
    ],
)
def test_vectors_are_those_of_transformers(
    tmp_path: Path, options: dict[str, Any], pooling: str, normalize: bool
) -> None:
    model = write_encoder(tmp_path, **options)
    ours_ND = Encoder(tmp_path).vectors(TEXTS)
    theirs_ND = torch.stack([theirs(model, text, pooling, normalize) for text in TEXTS])
    torch.testing.assert_close(ours_ND, theirs_ND, rtol=1e-4, atol=1e-5)


def test_neighbours_change_nothing_and_bf16_little(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    encoder = Encoder(tmp_path)
    together_ND = encoder.vectors(TEXTS)
    alone_ND = torch.cat([encoder.vectors([text]) for text in TEXTS])
    torch.testing.assert_close(together_ND, alone_ND, rtol=1e-5, atol=1e-6)
    halved_ND = Encoder(tmp_path, torch.bfloat16).vectors(TEXTS)
    assert ((together_ND * halved_ND).sum(1) > 0.999).all()


def test_names_of_2018_and_what_no_vector_needs(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    before_ND = Encoder(tmp_path).vectors(TEXTS)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {
        "bert." + name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): tensor
        for name, tensor in tensors.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(40)[None]
    old["cls.predictions.bias"] = torch.zeros(21)
    save_file(old, tmp_path / "model.safetensors")
    assert torch.equal(Encoder(tmp_path).vectors(TEXTS), before_ND)


def test_what_is_counted_is_what_is_read(tmp_path: Path) -> None:
    model = write_encoder(tmp_path)
    pooler = sum(parameter.numel() for parameter in model.pooler.parameters())
    assert EncoderConfig.load(tmp_path).num_parameters == model.num_parameters() - pooler


def test_length_comes_from_sentence_transformers_up_to_the_positions(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    assert EncoderConfig.load(tmp_path).max_tokens == 40
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    assert (EncoderConfig.load(tmp_path).max_tokens, EncoderConfig.load(tmp_path).longest) == (16, 40)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')
    assert EncoderConfig.load(tmp_path).max_tokens == 40


@pytest.mark.parametrize("text", [(), (4,) * 41])
def test_a_text_without_tokens_or_with_too_many_is_refused(tmp_path: Path, text: tuple[int, ...]) -> None:
    write_encoder(tmp_path)
    with pytest.raises(UsageError, match=f"{len(text)} tokens: expected 1 to 40"):
        Encoder(tmp_path).vectors([text])


def _edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def _without(path: Path, name: str) -> None:
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda d: _edit(d / "config.json", hidden_act="silu"), UnsupportedModelError, '`hidden_act` is "silu"'),
        (lambda d: _edit(d / "config.json", is_decoder=True), UnsupportedModelError, "`is_decoder` is true"),
        (lambda d: _edit(d / "config.json", hidden_size="32"), ModelError, "`hidden_size` is 32: expected a positive"),
        (lambda d: _edit(d / "config.json", num_attention_heads=5), ModelError, "`num_heads` is 5"),
        (
            lambda d: _edit(d / "config.json", num_hidden_layers=1),
            ModelError,
            "has unexpected weights: encoder.layer.1",
        ),
        (lambda d: _edit(d / "config.json", vocab_size=20), ModelError, "config.json calls for \\[20, 32\\]"),
        (lambda d: (d / "config.json").write_text("[]"), ModelError, "config.json is not what it should be"),
        (lambda d: (d / "modules.json").write_text('[{"type": "a.Dense"}]'), UnsupportedModelError, '"Dense"'),
        (
            lambda d: _edit(d / "1_Pooling/config.json", pooling_mode_max_tokens=True),
            UnsupportedModelError,
            "expected mean or cls, alone",
        ),
        (lambda d: (d / "1_Pooling/config.json").unlink(), ModelError, "there is no .*1_Pooling/config.json"),
        (lambda d: (d / "sentence_bert_config.json").write_text('{"max_seq_length": 0}'), ModelError, "max_seq_length"),
        (lambda d: _without(d / "model.safetensors", "embeddings.LayerNorm.bias"), ModelError, "lacks weights: embed"),
        (lambda d: (d / "model.safetensors").write_bytes(b"12345678"), ModelError, "truncated or corrupt"),
        (lambda d: (d / "model.safetensors").unlink(), ModelError, "expected weights in safetensors"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, spoil: Callable[[Path], object], error: type[ModelError], message: str
) -> None:
    write_encoder(tmp_path)
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        Encoder(tmp_path)


def test_the_newer_form_of_pooling(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    (tmp_path / "1_Pooling/config.json").write_text('{"embedding_dimension": 32, "pooling_mode": "cls"}')
    assert EncoderConfig.load(tmp_path).pooling == "cls"


def test_who_is_an_encoder(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder")
    (tmp_path / "decoder").mkdir()
    (tmp_path / "decoder" / "config.json").write_text(json.dumps(make().config.to_hf()))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    found = {name: is_encoder(tmp_path / name) for name in ("encoder", "decoder", "broken", "nothing")}
    assert found == {"encoder": True, "decoder": False, "broken": False, "nothing": False}
    assert SHAPE["hidden_size"] == EncoderConfig.load(tmp_path / "encoder").hidden_size


class TestTokens:
    @pytest.fixture
    def tokenizer(self, tmp_path: Path) -> EncoderTokenizer:
        write_encoder(tmp_path)
        return EncoderTokenizer.load(tmp_path)

    def test_those_of_transformers_whatever_the_file_cuts_and_pads(
        self, tmp_path: Path, tokenizer: EncoderTokenizer
    ) -> None:
        import transformers

        text = "The cat sat on a mat, and the dogs running."
        fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
        found = tokenizer.encode([text, "cat"])
        assert [list(one) for one in found] == [
            fast(one, truncation=False, padding=False)["input_ids"] for one in (text, "cat")
        ]
        assert len(found[0]) > 8 and found[1] == (2, 5, 3)

    def test_control_tokens_in_a_text_are_text(self, tokenizer: EncoderTokenizer) -> None:
        (found,) = tokenizer.encode(["cat [SEP] [CLS] dog"])
        assert (found.count(3), found.count(2)) == (1, 1)
        assert len(found) == 2 + 2 + 2 * 3  # "[", "sep", "]"

    def test_truncation_keeps_what_stands_around(self, tokenizer: EncoderTokenizer) -> None:
        whole, short = tokenizer.encode(["the cat sat on a mat", "cat"])
        cut, same = tokenizer.encode(["the cat sat on a mat", "cat"], longest=5)
        assert cut == (*whole[:4], whole[-1]) and same == short

    def test_a_file_that_is_none_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="there is no .*tokenizer.json"):
            EncoderTokenizer.load(tmp_path)
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(ModelError, match="tokenizer.json is not a tokenizer"):
            EncoderTokenizer.load(tmp_path)
