"""A rank's weights, read from safetensors: only its slices, each straight to its place in the fused matrix.

What is in memory is the result; the files are mapped, and the pages of the map are the system's to take back.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmos.errors import ModelError
from llmos.infer import memory
from llmos.infer.shard import LayerShard, Matrix, Shard
from llmos.infer.split import FEATURES, Split, aligned, split
from llmos.models.config import ModelConfig
from llmos.models.headers import EMBEDDING, OUTPUT, Header, headers
from llmos.models.packed_layout import dequantize, stored_bytes
from llmos.models.quantization import Quantization, Scheme
from llmos.models.weight_files import opened

_STORED_BYTES = {"I8": 1, "I32": 4, "I64": 8}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Slice:
    """Rows and columns of the linear ``name``."""

    name: str
    rows: range
    columns: range


def load_shard(
    directory: str | Path,
    dtype: torch.dtype,
    *,
    device: torch.device | str = "cpu",
    tp: tuple[int, int] = (0, 1),
    pp: tuple[int, int] = (0, 1),
) -> Shard:
    """The weights of rank ``tp[0]`` of ``tp[1]`` in stage ``pp[0]`` of ``pp[1]``, plain ones in ``dtype``.

    Raises ModelError, naming the file or weight and what was expected, unless exactly the weights that config.json
    calls for are there, whole; UsageError for a mesh that the model cannot be split over; OutOfMemoryError for more
    weights than there is memory free.
    """
    directory = Path(directory)
    config = ModelConfig.load(directory)
    quantization = Quantization.load(directory)
    found = headers(directory, config, quantization)
    quantum = max(FEATURES, quantization.widest_group) if quantization else FEATURES
    part, ranks = split(config, tp, pp, quantum), tp[1] * pp[1]
    memory.check_weights(_size_bytes(found, dtype) // ranks, torch.device(device), ranks)
    with ExitStack() as stack:
        files = {path: stack.enter_context(opened(path)) for path in {header.path for header in found.values()}}
        reader = _Reader(files, found, dtype, torch.device(device), quantization)
        return _shard(reader, config, part)


def _size_bytes(found: Mapping[str, Header], dtype: torch.dtype) -> int:
    """Of all weights in memory: plain ones in ``dtype``, quantized ones as they are stored."""
    return sum(math.prod(h.shape) * _STORED_BYTES.get(h.kind, dtype.itemsize) for h in found.values())


def _shard(reader: _Reader, config: ModelConfig, part: Split) -> Shard:
    first, last = part.layers.start == 0, part.layers.stop == config.num_layers
    hidden = range(config.hidden_size)
    embedding_VD = reader.plain([_Slice(EMBEDDING, range(config.vocab_size), hidden)]) if first else None
    output = None
    if last and not config.tie_embeddings:
        output = reader.matrix([_Slice(OUTPUT.removesuffix(".weight"), part.vocabulary, hidden)])
    elif last:
        rows = part.vocabulary
        mine = [_Slice(EMBEDDING, rows, hidden)]
        output = plain(reader.plain(mine) if embedding_VD is None else embedding_VD[rows.start : rows.stop])
    return Shard(
        config=config,
        heads=len(part.heads),
        kv_heads=len(part.kv_heads),
        first_layer=part.layers.start,
        layers=tuple(_layer(reader, config, part, f"model.layers.{layer}.") for layer in part.layers),
        embedding_VD=embedding_VD,
        norm_D=reader.vector("model.norm.weight") if last else None,
        output=output,
    )


def plain(weight_OI: Tensor) -> Matrix:
    """``weight_OI`` as it is."""
    return Matrix(weight_OI, weight_OI.element_size() * 8)


def _layer(reader: _Reader, config: ModelConfig, part: Split, prefix: str) -> LayerShard:
    attention, mlp, hidden = prefix + "self_attn.", prefix + "mlp.", range(config.hidden_size)
    heads, kv_heads = (
        range(some.start * config.head_dim, some.stop * config.head_dim) for some in (part.heads, part.kv_heads)
    )
    qkv = [
        _Slice(attention + "q_proj", heads, hidden),
        _Slice(attention + "k_proj", kv_heads, hidden),
        _Slice(attention + "v_proj", kv_heads, hidden),
    ]
    gate_up = [_Slice(mlp + name, part.features, hidden) for name in ("gate_proj", "up_proj")]
    return LayerShard(
        attention_norm_D=reader.vector(prefix + "input_layernorm.weight"),
        qkv=reader.matrix(qkv),
        qkv_bias=torch.cat([reader.vector(s.name + ".bias", s.rows) for s in qkv]) if config.attention_bias else None,
        query_norm_E=reader.vector(attention + "q_norm.weight") if config.qk_norm else None,
        key_norm_E=reader.vector(attention + "k_norm.weight") if config.qk_norm else None,
        out=reader.matrix([_Slice(attention + "o_proj", hidden, heads)]),
        mlp_norm_D=reader.vector(prefix + "post_attention_layernorm.weight"),
        gate_up=reader.matrix(gate_up),
        down=reader.matrix([_Slice(mlp + "down_proj", hidden, part.features)]),
    )


class _Reader:
    """Reads slices of the open ``files``, where ``headers`` says that they are."""

    def __init__(
        self,
        files: Mapping[Path, Any],
        headers: Mapping[str, Header],
        dtype: torch.dtype,
        device: torch.device,
        quantization: Quantization | None,
    ) -> None:
        self._files, self._headers, self._dtype, self._device = files, headers, dtype, device
        self._quantization = quantization

    def vector(self, name: str, rows: range | None = None) -> Tensor:
        """Entries ``rows`` (default: all) of a norm or bias, float32."""
        part: Tensor = self._part(name)[rows.start : rows.stop] if rows else self._part(name)[:]
        return part.to(self._device, torch.float32, copy=True)

    def matrix(self, slices: Sequence[_Slice]) -> Matrix:
        """The slices of linears below one another, which are quantized alike or not at all."""
        scheme = self._scheme([part.name for part in slices])
        if scheme is None:
            return plain(self.plain([_Slice(f"{part.name}.weight", part.rows, part.columns) for part in slices]))
        return (self._int4 if scheme.bits == 4 else self._int8)(slices, scheme)

    def _scheme(self, linears: Sequence[str]) -> Scheme | None:
        """The one of all of them. Raises ModelError if there is none."""
        schemes = {linear: self._quantization.scheme(linear) if self._quantization else None for linear in linears}
        if len(set(schemes.values())) > 1:
            what = ", ".join(f"{linear} {scheme or 'not quantized'}" for linear, scheme in schemes.items())
            raise ModelError(
                f"{what}: expected one scheme for all of them or none, as they are one product",
                hint="Quantize the original model with `llmos compress`, or use it as it is.",
            )
        return schemes[linears[0]]

    def plain(self, slices: Sequence[_Slice]) -> Tensor:
        """The slices of tensors below one another, in the type and on the device of the shard."""
        return self._gather([self._slice(part.name, part.rows, part.columns) for part in slices], self._dtype)

    def _int8(self, slices: Sequence[_Slice], scheme: Scheme) -> Matrix:
        values_OI = self._gather([self._values(part, scheme) for part in slices], torch.int8)
        scale_OG, group = self._scales(slices, scheme)
        if scale_OG.shape[1] == 1:
            return Matrix(values_OI, 8, scale_OG)
        _log.info("int8 in groups of %d columns is computed as %s: %s …", group, self._dtype, slices[0].name)
        return plain(dequantize(values_OI, scale_OG).to(self._dtype))

    def _int4(self, slices: Sequence[_Slice], scheme: Scheme) -> Matrix:
        bytes_OB = self._gather([self._packed_bytes(part, 4) for part in slices], torch.uint8)
        scale_OG, group = self._scales(slices, scheme)
        return Matrix(bytes_OB, 4, scale_OG, group)

    def _values(self, part: _Slice, scheme: Scheme) -> Tensor:
        if not scheme.packed:
            return self._slice(f"{part.name}.weight", part.rows, part.columns)
        return (self._packed_bytes(part, 8) ^ 0x80).view(torch.int8)  # stored + 128

    def _packed_bytes(self, part: _Slice, bits: int) -> Tensor:
        """The bytes of some columns, of which a word holds several: its borders must be theirs."""
        columns, in_word = part.columns, 32 // bits
        name = f"{part.name}.weight_packed"
        header, words = self._headers[name], range(columns.start // in_word, -(-columns.stop // in_word))
        if columns.start % in_word or (columns.stop % in_word and words.stop != header.shape[1]):
            raise ModelError(
                f"{header.path}: {name} cannot be cut at columns {columns.start} and {columns.stop}: "
                f"expected multiples of {in_word}, the values in a word",
                hint="Use fewer tp ranks.",
            )
        return stored_bytes(self._slice(name, part.rows, words).contiguous(), bits, len(columns))

    def _scales(self, slices: Sequence[_Slice], scheme: Scheme) -> tuple[Tensor, int]:
        """float32, with the columns that each is for: fewer than in the file where a group is cut."""
        columns, group = slices[0].columns, scheme.group
        if not group:
            scales = [self._slice(f"{part.name}.weight_scale", part.rows, range(1)) for part in slices]
            return self._gather(scales, torch.float32), len(columns)
        groups, size = range(columns.start // group, -(-columns.stop // group)), aligned(group, columns)
        before = columns.start // size - groups.start * (group // size)
        kept = slice(before, before + len(columns) // size)
        scales = [self._slice(f"{part.name}.weight_scale", part.rows, groups) for part in slices]
        return self._gather([s.repeat_interleave(group // size, 1)[:, kept] for s in scales], torch.float32), size

    def _gather(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """``parts`` below one another, in memory of their own."""
        whole = torch.empty((sum(map(len, parts)), parts[0].shape[1]), dtype=dtype, device=self._device)
        at = 0
        for part in parts:
            whole[at : at + len(part)].copy_(part)
            at += len(part)
        return whole

    def _slice(self, name: str, rows: range, columns: range) -> Tensor:
        part: Tensor = self._part(name)[rows.start : rows.stop, columns.start : columns.stop]
        return part

    def _part(self, name: str) -> Any:
        header = self._headers[name]
        return self._files[header.path].get_slice(name)
