"""What the safetensors files of a model hold, by their headers alone: read, and compared with what config.json says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from llmos.errors import ModelError
from llmos.models.config import ModelConfig
from llmos.models.packed_layout import words
from llmos.models.quantization import Quantization, Scheme
from llmos.models.weight_files import COPY_AGAIN, opened, weight_paths

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
DERIVED = ".rotary_emb.inv_freq"
"""Files of 2023 hold this; it follows from config.json."""

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of one tensor: ``kind`` is safetensors' name of its type."""

    path: Path
    shape: tuple[int, ...]
    kind: str

    @property
    def dtype(self) -> torch.dtype:
        """Of weights in plain floats."""
        return DTYPES[self.kind]


@dataclass(frozen=True, slots=True)
class Form:
    """What a tensor has to be: its shape, and the types it may have."""

    shape: tuple[int, ...]
    kinds: tuple[str, ...] = tuple(DTYPES)


def headers(directory: Path, config: ModelConfig, quantization: Quantization | None = None) -> dict[str, Header]:
    """Every tensor that ``config`` calls for, with its file in ``directory``; those that follow from others left out.

    Raises ModelError, naming the file or tensor and what was expected, unless exactly those are there, and whole.
    """
    found = _found(directory, config)
    _check(directory, forms(config, quantization), found)
    return found


def forms(config: ModelConfig, quantization: Quantization | None = None) -> dict[str, Form]:
    """The tensors of a model, by their names in its files.

    They are those of ``Transformer``, listed: making one without memory, on the meta device, imports for 3 s.
    """
    needed: dict[str, Form] = {}
    for name, shape in _shapes(config).items():
        scheme = scheme_of(name, shape, quantization)
        needed |= {name: Form(shape)} if scheme is None else _quantized(name.removesuffix(".weight"), shape, scheme)
    return needed


def scheme_of(name: str, shape: Sequence[int], quantization: Quantization | None) -> Scheme | None:
    """How the weights ``name`` of that shape are quantized; None for those in plain floats: all but some linears."""
    if quantization is None or len(shape) != 2 or name == EMBEDDING:
        return None
    return quantization.scheme(name.removesuffix(".weight"))


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, features = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q_size, hidden),
        "self_attn.k_proj.weight": (kv_size, hidden),
        "self_attn.v_proj.weight": (kv_size, hidden),
        "self_attn.o_proj.weight": (hidden, q_size),
        "mlp.gate_proj.weight": (features, hidden),
        "mlp.up_proj.weight": (features, hidden),
        "mlp.down_proj.weight": (hidden, features),
    }
    if config.attention_bias:
        sizes = {"q": q_size, "k": kv_size, "v": kv_size}
        layer |= {f"self_attn.{name}_proj.bias": (size,) for name, size in sizes.items()}
    if config.qk_norm:
        layer |= {f"self_attn.{name}_norm.weight": (config.head_dim,) for name in "qk"}
    ends: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden), "model.norm.weight": (hidden,)}
    if not config.tie_embeddings:
        ends[OUTPUT] = (config.vocab_size, hidden)
    layers = range(config.num_layers)
    return ends | {f"model.layers.{number}.{name}": shape for number in layers for name, shape in layer.items()}


def _quantized(linear: str, shape: tuple[int, ...], scheme: Scheme) -> dict[str, Form]:
    rows, columns = shape
    scale = {f"{linear}.weight_scale": Form((rows, scheme.groups(columns)))}
    if not scheme.packed:
        return {f"{linear}.weight": Form(shape, ("I8",)), **scale}
    packed = Form((rows, words(columns, scheme.bits)), ("I32",))
    return {f"{linear}.weight_packed": packed, f"{linear}.weight_shape": Form((2,), ("I64", "I32")), **scale}


def read(header: Header, name: str) -> Tensor:
    """The whole tensor ``name``, which ``header`` describes."""
    with opened(header.path) as file:
        return cast(Tensor, file.get_tensor(name))


def _found(directory: Path, config: ModelConfig) -> dict[str, Header]:
    """Every tensor in the files of ``directory`` but those that follow from others."""
    found: dict[str, Header] = {}
    for path in weight_paths(directory):
        with opened(path) as file:
            for name in file.keys():  # noqa: SIM118  # not a dict
                part = file.get_slice(name)
                found[name] = Header(path, tuple(part.get_shape()), part.get_dtype())
    derived = {name for name in found if name.endswith(DERIVED)}
    if config.tie_embeddings and _equal(found.get(EMBEDDING), found.get(OUTPUT)):
        derived.add(OUTPUT)
    return {name: header for name, header in found.items() if name not in derived}


def _equal(a: Header | None, b: Header | None) -> bool:
    """Whether both tensors are there and the same: some exports of tied models hold the matrix twice."""
    return a is not None and b is not None and torch.equal(read(a, EMBEDDING), read(b, OUTPUT))


def _check(directory: Path, needed: Mapping[str, Form], found: Mapping[str, Header]) -> None:
    """Raises ModelError unless ``found`` has each of ``needed``, in its form, and nothing else."""
    missing = sorted(needed.keys() - found.keys())
    unexpected = sorted(found.keys() - needed.keys())
    for what, names in (("lacks", missing), ("has unexpected", unexpected)):
        if names:
            some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ModelError(f"{directory} {what} weights: {some}; expected what config.json says", hint=COPY_AGAIN)
    for name, header in found.items():
        form = needed[name]
        if header.shape != form.shape:
            what = f"{header.path}: {name} has shape {list(header.shape)}"
            raise ModelError(f"{what}; config.json calls for {list(form.shape)}", hint=COPY_AGAIN)
        if header.kind not in form.kinds:
            what = f"{header.path}: {name} has type {header.kind}; expected {', '.join(form.kinds)}"
            raise ModelError(what, hint="Use the original model, in plain floats.")
