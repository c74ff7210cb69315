"""The weights of an encoder: safetensors, by Hugging Face's names in all their ages. Read without torch for a check."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from llmos.errors import ModelError
from llmos.files import read_json
from llmos.models.encoder_config import EncoderConfig

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
KINDS = ("F32", "BF16", "F16")

_PREFIX = re.compile(r"^(bert|roberta)\.")
_OTHER_TASKS = re.compile(
    r"^(pooler|cls|lm_head|classifier|qa_outputs|dropout)\.|^embeddings\.(position|token_type)_ids$"
)
"""What a vector is not made with: heads, and numbers that follow from the shape."""
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_COPY_AGAIN = "Copy the model again."


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor is: its file, and its name there."""

    path: Path
    name: str


def places(directory: Path, config: EncoderConfig) -> dict[str, Place]:
    """Every weight that ``config`` calls for, by its name in :meth:`EncoderConfig.tensors`.

    Raises ModelError, naming the file or the tensor and what was expected, unless exactly those are there, and whole.
    """
    found: dict[str, Place] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _paths(directory):
        with opened(path, "np") as file:
            for name in file.keys():  # noqa: SIM118  # not a dict
                if (known := _canonical(name)) is not None:
                    part = file.get_slice(name)
                    _check_kind(path, name, part.get_dtype())
                    found[known], shapes[known] = Place(path, name), tuple(part.get_shape())
    _check(directory, dict(config.tensors()), shapes)
    return found


@contextmanager
def opened(path: Path, framework: str) -> Iterator[Any]:
    """``path`` open for reading. Whatever is wrong with its content becomes a ModelError."""
    if not path.exists():
        pickled = any(path.parent.glob("*.bin")) or any(path.parent.glob("*.pt*"))
        hint = "Convert its pickled files to safetensors first." if pickled else _COPY_AGAIN
        raise ModelError(f"there is no {path}: expected weights in safetensors files", hint=hint)
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError) as error:
        what = f"{path} ({path.stat().st_size:,} bytes) is truncated or corrupt: {error}"
        raise ModelError(f"{what}; expected a whole safetensors file", hint=_COPY_AGAIN) from error


def _canonical(name: str) -> str | None:
    """The name without what a file of a larger model, or of 2018, adds to it; None for what no vector needs."""
    name = _PREFIX.sub("", name)
    if _OTHER_TASKS.match(name):
        return None
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new)
    return name


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


def _check_kind(path: Path, name: str, kind: str) -> None:
    if kind not in KINDS:
        what = f"{path}: {name} has type {kind}; expected {', '.join(KINDS)}"
        raise ModelError(what, hint="Use the original model, in plain floats.")


def _check(directory: Path, needed: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    for what, names in (
        ("lacks", sorted(needed.keys() - found.keys())),
        ("has unexpected", sorted(found.keys() - needed.keys())),
    ):
        if names:
            some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ModelError(f"{directory} {what} weights: {some}; expected what config.json says", hint=_COPY_AGAIN)
    for name, shape in found.items():
        if shape != needed[name]:
            what = f"{directory}: {name} has shape {list(shape)}; config.json calls for {list(needed[name])}"
            raise ModelError(what, hint=_COPY_AGAIN)
