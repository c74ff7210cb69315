"""Weights on disk: safetensors in the Hugging Face layout. Pickled files are never opened."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from llmos.errors import ModelError
from llmos.files import sync_directory, write_json
from llmos.models import packed_layout
from llmos.models.config import ModelConfig
from llmos.models.digest import digest as digest
from llmos.models.headers import DTYPES, scheme_of
from llmos.models.headers import EMBEDDING as EMBEDDING
from llmos.models.headers import Header as Header
from llmos.models.headers import headers as headers
from llmos.models.headers import read as read
from llmos.models.packed_layout import unpack
from llmos.models.quantization import Quantization, Scheme
from llmos.models.transformer import Transformer
from llmos.models.weight_files import INDEX, SINGLE, opened

MAX_FILE_BYTES = 5 * 10**9
"""Larger models are split into several files, as Hugging Face does."""


def load_model(
    directory: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    *,
    dequantize: bool = False,
) -> Transformer:
    """The model in ``directory``, on ``device``, in ``dtype`` (default: that of its files).

    ``dequantize``: quantized weights become the floats that they stand for. Raises ModelError, naming the file and what
    was expected, unless exactly the weights that config.json calls for are there, whole, and (else) in plain floats.
    """
    directory = Path(directory)
    config = ModelConfig.load(directory)
    if (quantization := Quantization.load(directory)) is not None and not dequantize:
        what = f"{directory} has quantized weights ({quantization}): expected plain floats"
        raise ModelError(what, hint="The inference engine and `llmos eval` read them; here, use the original model.")
    with torch.device("meta"):
        model = Transformer(config)
    found = headers(directory, config, quantization)
    floats = (header.dtype for header in found.values() if header.kind in DTYPES)
    model = model.to(dtype or reduce(torch.promote_types, floats)).to_empty(device=device)
    schemes = {name: scheme_of(name, p.shape, quantization) for name, p in model.named_parameters()}
    with torch.no_grad():
        for path in dict.fromkeys(header.path for header in found.values()):
            with opened(path) as file:
                for name, parameter in model.named_parameters():
                    if schemes[name] is None and found[name].path == path:
                        parameter.copy_(file.get_tensor(name))
        for name, parameter in model.named_parameters():
            if (scheme := schemes[name]) is not None:
                parameter.copy_(_dequantized(found, name, scheme, parameter.shape[1]))
    return model


def _dequantized(found: Mapping[str, Header], name: str, scheme: Scheme, columns: int) -> Tensor:
    """The weights [O, ``columns``], float32, that the quantized ones of ``name`` stand for."""
    stored_name, scale_name = f"{name}_packed" if scheme.packed else name, f"{name}_scale"
    stored, scale_OG = read(found[stored_name], stored_name), read(found[scale_name], scale_name)
    return packed_layout.dequantize(unpack(stored, scheme.bits, columns) if scheme.packed else stored, scale_OG)


def save_model(model: Transformer, directory: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write config.json and the weights (in ``dtype``; default: as they are) to ``directory``.

    Each file appears whole or not at all; files of an earlier model there are removed.
    """
    parameters = dict(model.named_parameters())
    save_weights(model.config, parameters, lambda names: {n: parameters[n].detach() for n in names}, directory, dtype)


def save_weights(
    config: ModelConfig,
    forms: Mapping[str, Tensor],
    read: Callable[[Iterable[str]], Mapping[str, Tensor]],
    directory: str | Path,
    dtype: torch.dtype | None = None,
    quantization: Quantization | None = None,
) -> None:
    """:func:`save_model` for weights that need not be in memory: ``read`` is asked for those of one file at a time.

    ``forms`` has the shape and type of each; their content does not matter. ``quantization`` is what has become of
    them; the first of ``forms`` is in plain floats all the same.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    stored = {name: torch.empty_like(form, dtype=dtype, device="meta") for name, form in forms.items()}
    shards = _shards(stored)
    names = [SINGLE] if len(shards) == 1 else _shard_names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        tensors = {key: value.to("cpu", shard[key].dtype).contiguous() for key, value in read(shard).items()}
        _write(directory / name, tensors)
    if len(shards) > 1:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        write_json(directory / INDEX, {"metadata": {"total_size": _size(stored)}, "weight_map": weight_map})
    kind = str(next(iter(stored.values())).dtype).removeprefix("torch.")
    how = {} if quantization is None else {"quantization_config": quantization.to_hf()}
    write_json(directory / "config.json", {**config.to_hf(), "torch_dtype": kind, **how})
    for path in directory.glob(SINGLE.replace(".", "*.")):
        if path.name not in names:
            path.unlink()
    if len(shards) == 1:
        (directory / INDEX).unlink(missing_ok=True)
    sync_directory(directory)


def _shards(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """``tensors`` in parts of at most MAX_FILE_BYTES, in order; a larger tensor has a part of its own."""
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and _size(shards[-1]) + tensor.nbytes > MAX_FILE_BYTES:
            shards.append({})
        shards[-1][name] = tensor
    return shards


def _shard_names(count: int) -> list[str]:
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file in one step: beside its place, fsync, rename."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(descriptor)
    try:
        save_file(dict(tensors), temporary, metadata={"format": "pt"})
        os.chmod(temporary, 0o644)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
