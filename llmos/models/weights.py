"""Weights on disk: safetensors in the Hugging Face layout. Pickled files are never opened."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmos.errors import ModelError
from llmos.files import read_json, sync_directory, write_json
from llmos.models.config import ModelConfig
from llmos.models.digest import digest as digest
from llmos.models.transformer import Transformer

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_FILE_BYTES = 5 * 10**9
"""Larger models are split into several files, as Hugging Face does."""

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
DERIVED = ".rotary_emb.inv_freq"
"""Files of 2023 hold this; it follows from config.json."""

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_COPY_AGAIN = "Copy or export the model again."


def load_model(
    directory: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Transformer:
    """The model in ``directory``, on ``device``, in ``dtype`` (default: that of its files).

    Raises ModelError, naming the file and what was expected, unless exactly the weights that config.json calls for are
    there, whole.
    """
    directory = Path(directory)
    config = ModelConfig.load(directory)
    with torch.device("meta"):
        model = Transformer(config)
    headers = _headers(directory, config)
    _check(directory, dict(model.named_parameters()), headers)
    kind = dtype or reduce(torch.promote_types, (_DTYPES[header.kind] for header in headers.values()))
    model = model.to(kind).to_empty(device=device)
    with torch.no_grad():
        for path in dict.fromkeys(header.path for header in headers.values()):
            with _opened(path) as file:
                for name, parameter in model.named_parameters():
                    if headers[name].path == path:
                        parameter.copy_(file.get_tensor(name))
    return model


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
) -> None:
    """:func:`save_model` for weights that need not be in memory: ``read`` is asked for those of one file at a time.

    ``forms`` has the shape and type of each; their content does not matter.
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
    write_json(directory / "config.json", {**config.to_hf(), "torch_dtype": kind})
    for path in directory.glob(SINGLE.replace(".", "*.")):
        if path.name not in names:
            path.unlink()
    if len(shards) == 1:
        (directory / INDEX).unlink(missing_ok=True)
    sync_directory(directory)


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of one tensor: ``kind`` is safetensors' name of its type."""

    path: Path
    shape: tuple[int, ...]
    kind: str


def _headers(directory: Path, config: ModelConfig) -> dict[str, Header]:
    """Every tensor in the files of ``directory`` but those that follow from others."""
    found: dict[str, Header] = {}
    for path in _paths(directory):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118  # not a dict
                part = file.get_slice(name)
                found[name] = Header(path, tuple(part.get_shape()), part.get_dtype())
    derived = {name for name in found if name.endswith(DERIVED)}
    if config.tie_embeddings and _equal(found.get(EMBEDDING), found.get(OUTPUT)):
        derived.add(OUTPUT)
    return {name: header for name, header in found.items() if name not in derived}


def _paths(directory: Path) -> list[Path]:
    """The files that hold the weights: those of the index, if there is one."""
    index = directory / INDEX
    if not index.exists():
        return [directory / SINGLE]
    try:
        names = {str(name) for name in read_json(index)["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is not an index of weights: expected `weight_map`", hint=_COPY_AGAIN) from error
    if outside := [name for name in names if Path(name).name != name]:
        raise ModelError(f"{index} names {outside[0]!r}: expected files beside it", hint=_COPY_AGAIN)
    return [directory / name for name in sorted(names)]


def _equal(a: Header | None, b: Header | None) -> bool:
    """Whether both tensors are there and the same: some exports of tied models hold the matrix twice."""
    return a is not None and b is not None and torch.equal(_read(a, EMBEDDING), _read(b, OUTPUT))


def _read(header: Header, name: str) -> Tensor:
    with _opened(header.path) as file:
        return cast(Tensor, file.get_tensor(name))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """``path`` open for reading. Whatever is wrong with its content becomes a ModelError."""
    if not path.exists():
        pickled = any(path.parent.glob("*.bin")) or any(path.parent.glob("*.pt*"))
        hint = "Convert its pickled files to safetensors first." if pickled else _COPY_AGAIN
        raise ModelError(f"there is no {path}: expected weights in safetensors files", hint=hint)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        what = f"{path} ({path.stat().st_size:,} bytes) is truncated or corrupt: {error}"
        raise ModelError(f"{what}; expected a whole safetensors file", hint=_COPY_AGAIN) from error


def _check(directory: Path, parameters: Mapping[str, Tensor], headers: Mapping[str, Header]) -> None:
    """Raises ModelError unless ``headers`` has each of ``parameters``, in its shape, and nothing else."""
    missing = sorted(parameters.keys() - headers.keys())
    unexpected = sorted(headers.keys() - parameters.keys())
    for what, names in (("lacks", missing), ("has unexpected", unexpected)):
        if names:
            some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ModelError(f"{directory} {what} weights: {some}; expected what config.json says", hint=_COPY_AGAIN)
    for name, header in headers.items():
        expected = tuple(parameters[name].shape)
        if header.shape != expected:
            what = f"{header.path}: {name} has shape {list(header.shape)}"
            raise ModelError(f"{what}; config.json calls for {list(expected)}", hint=_COPY_AGAIN)
        if header.kind not in _DTYPES:
            what = f"{header.path}: {name} has type {header.kind}; expected {', '.join(_DTYPES)}"
            raise ModelError(what, hint="Quantized weights are not supported: use the original model.")


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
