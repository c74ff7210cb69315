"""What ranks read of a model: together everything, each only its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmos.errors import ModelError, OutOfMemoryError, UsageError
from llmos.infer import load, memory
from llmos.infer.load import load_shard
from llmos.infer.makers import size_bytes
from llmos.infer.shard import Matrix
from llmos.infer.split import FEATURES, split
from llmos.models import weights
from llmos.models.packed_layout import dequantize
from llmos.models.quantization import Quantization
from tests.unit.infer.quantized import INT4, linears, write_quantized
from tests.unit.models.small import SMALL, make

HEAD = SMALL.head_dim


@given(st.sampled_from([(9, 3), (14, 2), (8, 8), (32, 8), (12, 1)]), st.integers(1, 6), st.integers(1, 5))
def test_ranks_share_everything_and_each_has_something(heads: tuple[int, int], ranks: int, stages: int) -> None:
    config = dataclasses.replace(SMALL, num_layers=5, num_heads=heads[0], num_kv_heads=heads[1])
    if ranks > heads[1] and (ranks % heads[1] or ranks > heads[0]):
        with pytest.raises(UsageError, match=f"`tp` is {ranks}"):
            split(config, (0, ranks), (0, stages))
        return
    parts = [[split(config, (t, ranks), (p, stages)) for p in range(stages)] for t in range(ranks)]
    first = [row[0] for row in parts]
    for name, count in (("heads", heads[0]), ("features", config.intermediate_size), ("vocabulary", config.vocab_size)):
        ranges = [getattr(part, name) for part in first]
        assert [i for some in ranges for i in some] == list(range(count)) and all(ranges)
    assert [i for part in parts[0] for i in part.layers] == list(range(5)) and all(part.layers for part in parts[0])
    group = heads[0] // heads[1]
    for part in first:  # every query head finds its key head, and all key heads here serve as many
        assert {head // group for head in part.heads} == set(part.kv_heads)
        assert len(part.heads) % len(part.kv_heads) == 0


def test_a_mesh_that_leaves_a_rank_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="`pp` is 4: expected at most 3, the model's layers"):
        split(SMALL, (0, 1), (0, 4))
    with pytest.raises(UsageError, match="`tp` is 3: expected at most 2, the model's key heads, or a multiple"):
        split(SMALL, (0, 3), (0, 1))


def _value(matrix: Matrix) -> Tensor:
    if matrix.scale is None:
        return matrix.weight
    values_OI = matrix.weight
    if matrix.bits == 4:
        values_OI = torch.stack((values_OI & 15, values_OI >> 4), -1).flatten(1).to(torch.int8) - 8
    return dequantize(values_OI, matrix.scale)


@pytest.mark.parametrize(
    "quantization",
    [None, linears(8), linears(8, packed=False), linears(4, 32), linears(4), INT4],
    ids=str,
)
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_slices_are_those_of_the_whole(tmp_path: Path, quantization: Quantization | None, tp: int) -> None:
    model = make(tie_embeddings=False, intermediate_size=96)
    if quantization is None:
        weights.save_model(model, tmp_path)
    else:
        model = write_quantized(model, tmp_path, quantization)
    whole, layer = model.state_dict(), "model.layers.2."
    quantum = max(FEATURES, quantization.widest_group if quantization else 0)
    for rank in range(tp):
        shard = load_shard(tmp_path, torch.float32, tp=(rank, tp), pp=(1, 2))
        part = split(model.config, (rank, tp), (1, 2), quantum)
        heads, kv = ([i for h in some for i in range(h * HEAD, (h + 1) * HEAD)] for some in (part.heads, part.kv_heads))
        ours = shard.layers[-1]
        projections = [(name, rows) for name, rows in (("q", heads), ("k", kv), ("v", kv))]
        qkv = torch.cat([whole[f"{layer}self_attn.{name}_proj.weight"][rows] for name, rows in projections])
        gate_up = torch.cat([whole[f"{layer}mlp.{name}_proj.weight"][list(part.features)] for name in ("gate", "up")])
        assert torch.equal(_value(ours.qkv), qkv) and torch.equal(_value(ours.gate_up), gate_up)
        assert torch.equal(_value(ours.out), whole[layer + "self_attn.o_proj.weight"][:, heads])
        assert torch.equal(_value(ours.down), whole[layer + "mlp.down_proj.weight"][:, list(part.features)])
        assert shard.output is not None and shard.embedding_VD is None and shard.first_layer + len(shard.layers) == 3
        assert torch.equal(_value(shard.output), whole["lm_head.weight"][list(part.vocabulary)])
        assert shard.output.bits == (8 if quantization == INT4 else 32)
        assert (shard.heads, shard.kv_heads) == (8 // tp, max(1, 2 // tp))


def test_tied_ends_share_their_memory_where_they_are_on_one_rank(tmp_path: Path) -> None:
    weights.save_model(make(), tmp_path)
    alone = load_shard(tmp_path, torch.bfloat16)
    assert alone.embedding_VD is not None and alone.output is not None
    assert alone.output.weight.data_ptr() == alone.embedding_VD.data_ptr() and alone.output.bits == 16
    first, last = (load_shard(tmp_path, torch.bfloat16, tp=(1, 2), pp=(stage, 2)) for stage in (0, 1))
    assert first.output is None and first.norm_D is None and first.embedding_VD is not None
    assert last.embedding_VD is None and last.output is not None and last.norm_D is not None
    assert torch.equal(last.output.weight, alone.embedding_VD[-len(last.output.weight) :])
    assert last.norm_D.dtype is torch.float32


def test_a_rank_reads_only_its_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights.save_model(make(), tmp_path)
    read: list[int] = []
    whole = load._Reader._slice

    def counted(self: load._Reader, name: str, rows: range, columns: range) -> Tensor:
        read.append(len(rows) * len(columns))
        return whole(self, name, rows, columns)

    monkeypatch.setattr(load._Reader, "_slice", counted)
    load_shard(tmp_path, torch.float32)
    everything = sum(read)
    read.clear()
    for rank in range(2):
        load_shard(tmp_path, torch.float32, tp=(rank, 2), pp=(1, 3))
        load_shard(tmp_path, torch.float32, tp=(rank, 2), pp=(2, 3))
    one_layer = (everything - SMALL.vocab_size * SMALL.hidden_size) // 3
    assert sum(read) == 2 * one_layer + SMALL.vocab_size * SMALL.hidden_size


NAME = "model.layers.0.mlp.down_proj.weight_scale"


def _lost(tensors: dict[str, Tensor]) -> None:
    del tensors[NAME]


def _reshaped(tensors: dict[str, Tensor]) -> None:
    tensors[NAME] = tensors[NAME][:, :1].contiguous()


def _plain_key(tensors: dict[str, Tensor]) -> None:
    for part in ("packed", "scale", "shape"):
        del tensors[f"model.layers.0.self_attn.k_proj.weight_{part}"]
    tensors["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(32, 64)


@pytest.mark.parametrize(
    ("edit", "ignore", "says"),
    [
        (_lost, (), rf"lacks weights: {NAME}"),
        (_reshaped, (), rf"{NAME} has shape \[64, 1\]; config.json calls for \[64, 3\]"),
        (
            _plain_key,
            ("model.layers.0.self_attn.k_proj",),
            "q_proj int4 .* of 32, .*k_proj not quantized, .* one",
        ),
    ],
    ids=["lost", "reshaped", "mixed"],
)
def test_quantized_files_that_are_not_whole(tmp_path: Path, edit, ignore, says) -> None:  # type: ignore[no-untyped-def]
    write_quantized(make(intermediate_size=96), tmp_path, linears(4, 32))
    tensors = load_file(tmp_path / "model.safetensors")
    edit(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    if ignore:
        config = (tmp_path / "config.json").read_text()
        (tmp_path / "config.json").write_text(config.replace('"lm_head"', f'"lm_head", "{ignore[0]}"'))
    with pytest.raises(ModelError, match=says):
        load_shard(tmp_path, torch.float32)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    weights.save_model(make(), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=f"{file} .* is truncated or corrupt"):
        load_shard(tmp_path, torch.float32)


@pytest.mark.parametrize(
    ("dtype", "quantization", "share"), [(torch.float32, None, 1.0), (torch.bfloat16, linears(4, 32), 0.2)]
)
def test_more_weights_than_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, quantization: Quantization | None, share: float
) -> None:
    model = make(intermediate_size=96, hidden_size=192)
    if quantization is None:
        weights.save_model(model, tmp_path)
    else:
        write_quantized(model, tmp_path, quantization)
    size = sum(p.nbytes for p in model.parameters())
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10_000)
    with pytest.raises(OutOfMemoryError, match="of the model need (.*) MiB: 0.0 MiB are free") as error:
        load_shard(tmp_path, dtype)
    needed = float(str(error.value).split("need ")[1].split()[0]) * 2**20
    assert needed / size == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_memory_is_counted_for_every_matrix_once(tmp_path: Path, tied: bool) -> None:
    model = make(tie_embeddings=tied)
    weights.save_model(model, tmp_path)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    assert size_bytes(load_shard(tmp_path, torch.float32)) == 4 * matrices
