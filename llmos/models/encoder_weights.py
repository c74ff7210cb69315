"""The weights of an encoder: safetensors, by Hugging Face's names in all their ages. Read without torch for a check."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmos.errors import ModelError
from llmos.models.encoder_config import EncoderConfig
from llmos.models.weight_files import COPY_AGAIN, opened, weight_paths

KINDS = ("F32", "BF16", "F16")

_PREFIX = re.compile(r"^(bert|roberta)\.")
_OTHER_TASKS = re.compile(
    r"^(pooler|cls|lm_head|classifier|qa_outputs|dropout)\.|^embeddings\.(position|token_type)_ids$"
)
"""What a vector is not made with: heads, and numbers that follow from the shape."""
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


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
    for path in weight_paths(directory):
        with opened(path, "np") as file:
            for name in file.keys():  # noqa: SIM118  # not a dict
                if (known := _canonical(name)) is not None:
                    part = file.get_slice(name)
                    _check_kind(path, name, part.get_dtype())
                    found[known], shapes[known] = Place(path, name), tuple(part.get_shape())
    _check(directory, dict(config.tensors()), shapes)
    return found


def _canonical(name: str) -> str | None:
    """The name without what a file of a larger model, or of 2018, adds to it; None for what no vector needs."""
    name = _PREFIX.sub("", name)
    if _OTHER_TASKS.match(name):
        return None
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new)
    return name


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
            raise ModelError(f"{directory} {what} weights: {some}; expected what config.json says", hint=COPY_AGAIN)
    for name, shape in found.items():
        if shape != needed[name]:
            what = f"{directory}: {name} has shape {list(shape)}; config.json calls for {list(needed[name])}"
            raise ModelError(what, hint=COPY_AGAIN)
