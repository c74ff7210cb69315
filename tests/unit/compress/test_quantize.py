"""The weights that are written: their layout, that they are the original's, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmos.compress import quantize
from llmos.compress.quantize import quantization_for, quantize_weights
from llmos.errors import ModelError, UsageError
from llmos.models import Transformer, weights
from llmos.models.headers import headers
from llmos.models.quantization import LINEAR, OUTPUT, Quantization, Scheme
from tests.unit.compress.conftest import SHAPE
from tests.unit.infer.quantized import write_quantized
from tests.unit.models.small import make

LINEARS = {
    f"model.layers.{layer}.{part}_proj"
    for layer in range(SHAPE.num_layers)
    for part in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
}


INT8, INT4 = (Quantization({LINEAR: scheme, OUTPUT: Scheme(8)}) for scheme in (Scheme(8), Scheme(4, 32)))
INT4_LAYERS = Quantization({LINEAR: Scheme(4, 32)}, (OUTPUT,))


def quiet(done: int, total: int) -> None:
    """Progress that nobody reads."""


def by_numpy(tensors: dict[str, torch.Tensor], linear: str, bits: int) -> np.ndarray:
    """The weights of ``linear``, by the layout's definition: value i of a row is in its bits i · bits and following."""
    rows, columns = tensors[f"{linear}.weight_shape"].tolist()
    words_OW = tensors[f"{linear}.weight_packed"].numpy().astype("<i4")
    bits_OIb = np.unpackbits(words_OW.view(np.uint8), axis=1, bitorder="little").reshape(rows, -1, bits)
    values_OI = (bits_OIb * (1 << np.arange(bits))).sum(-1)[:, :columns] - (1 << (bits - 1))
    scale_OG = tensors[f"{linear}.weight_scale"].float().numpy()
    return values_OI * np.repeat(scale_OG, columns // scale_OG.shape[1], axis=1)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("bits", "group", "error"), [(8, None, 0.01), (4, None, 0.10), (4, 16, 0.09)])
def test_the_layout_holds_the_original_but_for_the_rounding(tmp_path: Path, monkeypatch, bits, group, error, tied):
    source, shape = tmp_path / "in", dataclasses.replace(SHAPE, tie_embeddings=tied)
    weights.save_model(Transformer(shape), source, torch.bfloat16)
    monkeypatch.setattr(quantize, "ROWS", 100)  # several times, and a rest
    told: list[tuple[int, int]] = []
    quantization = quantization_for(shape, bits, group)
    errors = quantize_weights(source, tmp_path / "out", quantization, lambda *counts: told.append(counts))
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    before.setdefault("lm_head.weight", before["model.embed_tokens.weight"])
    rounded = {*LINEARS, "lm_head"}
    parts = {f"{linear}.{part}" for linear in rounded for part in ("weight_packed", "weight_scale", "weight_shape")}
    assert set(after) == parts | (set(before) - {f"{linear}.weight" for linear in rounded})
    differences, sizes, each = 0.0, 0.0, {}
    for linear in rounded:
        weight_OI = before[f"{linear}.weight"].float().numpy()
        found_OI = by_numpy(after, linear, 8 if linear == "lm_head" else bits)
        difference = np.square(found_OI - weight_OI).sum()
        each[linear] = np.sqrt(difference / np.square(weight_OI).sum())
        differences, sizes = differences + difference, sizes + np.square(weight_OI).sum()
        assert after[f"{linear}.weight_scale"].dtype == torch.bfloat16
    assert errors.whole == pytest.approx(np.sqrt(differences / sizes), rel=1e-4) and errors.whole < error
    assert errors.worst == pytest.approx(max(each.values()), rel=1e-4) and each[errors.worst_matrix] == max(
        each.values()
    )
    assert each["lm_head"] < 0.01
    assert all(torch.equal(after[name], before[name]) for name in set(before) & set(after))
    assert told == [(done, len(rounded)) for done in range(1, len(rounded) + 1)]


def test_the_output_matrix_may_stay_as_it_is(source: Path, tmp_path: Path):
    quantize_weights(source, tmp_path / "out", quantization_for(SHAPE, 4, keep_output=True), quiet)
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert not any(name.startswith("lm_head") for name in after)
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


@pytest.mark.parametrize(("quantization", "tied"), [(INT4, False), (INT4_LAYERS, True)], ids=["all", "layers"])
def test_config_says_how(source: Path, tmp_path: Path, quantization: Quantization, tied: bool):
    quantize_weights(source, tmp_path / "out", quantization, quiet)
    before, after = (json.loads((path / "config.json").read_text()) for path in (source, tmp_path / "out"))
    assert after.pop("quantization_config") == quantization.to_hf()
    assert after == before | {"tie_word_embeddings": tied}
    assert Quantization.load(tmp_path / "out") == quantization and Quantization.load(source) is None
    found = headers(tmp_path / "out", dataclasses.replace(SHAPE, tie_embeddings=tied), quantization)
    assert len(found) == (len(LINEARS) + (not tied)) * 3 + 2 * SHAPE.num_layers + 2


@pytest.mark.parametrize("packed", [True, False])
def test_the_floats_that_it_stands_for(tmp_path: Path, packed: bool):
    model = make(tie_embeddings=False)
    scheme = Scheme(8, 0) if packed else Scheme(8, packed=False)
    expected = write_quantized(model, tmp_path, Quantization({LINEAR: Scheme(4, 16), OUTPUT: scheme})).state_dict()
    found = weights.load_model(tmp_path, dequantize=True).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_only_one_file_of_the_result_is_in_memory(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    quantize_weights(source, whole, INT8, quiet)
    monkeypatch.setattr(weights, "MAX_FILE_BYTES", 20_000)
    largest, save = 0, weights.save_file

    def saved(tensors: dict[str, torch.Tensor], *args, **more) -> None:
        nonlocal largest
        largest = max(largest, sum(tensor.nbytes for tensor in tensors.values()))
        save(tensors, *args, **more)

    monkeypatch.setattr(weights, "save_file", saved)
    errors = quantize_weights(source, parts, INT8, quiet)
    files = sorted(parts.glob("model-*.safetensors"))
    assert len(files) > 5 and largest <= 320 * 64 * 2  # the embedding, which is larger than a file may be
    assert errors.whole > 0
    expected = load_file(whole / "model.safetensors")
    found = {name: tensor for path in files for name, tensor in load_file(path).items()}
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("architecture", ["mistral", "qwen2", "qwen3"])
def test_other_families_keep_their_biases_and_norms(tmp_path: Path, architecture):
    shape = dataclasses.replace(
        SHAPE, architecture=architecture, attention_bias=architecture == "qwen2", qk_norm=architecture == "qwen3"
    )
    shape = dataclasses.replace(shape, tie_embeddings=False)
    weights.save_model(Transformer(shape), tmp_path / "in")
    quantize_weights(tmp_path / "in", tmp_path / "out", INT8, quiet)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "out"))
    same = set(before) & set(after)
    assert same == {name for name in before if name.removesuffix(".weight") not in {*LINEARS, "lm_head"}}
    assert all(torch.equal(after[name], before[name]) for name in same)
    assert after[f"{min(LINEARS)}.weight_scale"].dtype == torch.float32


def test_weights_that_are_no_numbers_are_refused_by_name(source: Path, tmp_path: Path):
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has weights that are no numbers"):
        quantize_weights(source, tmp_path / "out", INT8, quiet)


def test_a_quantized_model_is_refused_here_and_for_training(source: Path, tmp_path: Path):
    quantize_weights(source, tmp_path / "out", INT4, quiet)
    with pytest.raises(ModelError, match="is quantized already \\(int4 in groups of 32, lm_head int8 by channel\\)"):
        quantize_weights(tmp_path / "out", tmp_path / "again", INT8, quiet)
    with pytest.raises(ModelError, match="has quantized weights \\(int4 .* by channel\\): expected plain floats"):
        weights.load_model(tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "group"), [({}, 32), ({"intermediate_size": 256}, 64), ({"intermediate_size": 176}, 16)]
)
def test_the_widest_group_that_all_rows_allow(changes, group):
    found = quantization_for(dataclasses.replace(SHAPE, **changes), 4)
    assert found.scheme("model.layers.0.mlp.up_proj") == Scheme(4, group) and found.scheme("lm_head") == Scheme(8)
    assert quantization_for(dataclasses.replace(SHAPE, **changes), 8) == INT8


@pytest.mark.parametrize(
    ("bits", "group", "intermediate", "message", "hint"),
    [
        (4, 128, 160, "group size of 128: this model's matrices have rows of 64, 160 columns", "Fit are 32, 16."),
        (4, 0, 160, "group size of 0: ", "Fit are 32, 16."),
        (4, -32, 160, "group size of -32: ", "Fit are 32, 16."),
        (4, 5, 100, "group size of 5: ", "Use --int8."),
        (4, None, 100, "rows of 64, 100 columns: none of 128, 64, 32, 16 divides them all", "Use --int8."),
        (8, 32, 160, "int8 has a scale for each row", ""),
    ],
)
def test_groups_that_cannot_be_are_refused_with_the_numbers(bits, group, intermediate, message, hint):
    with pytest.raises(UsageError) as error:
        quantization_for(dataclasses.replace(SHAPE, intermediate_size=intermediate), bits, group)
    assert message in error.value.message and error.value.hint == hint
