"""The safetensors files of a model, of whatever kind: which there are, and one of them open. Without torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from llmos.errors import ModelError
from llmos.files import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
COPY_AGAIN = "Copy or export the model again."


@contextmanager
def opened(path: Path, framework: str = "pt") -> Iterator[Any]:
    """``path`` open for reading; ``framework`` is ``pt`` for torch's tensors, ``np`` for numpy's.

    Whatever is wrong with its content becomes a ModelError.
    """
    if not path.exists():
        raise absent(path)
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError) as error:
        what = f"{path} ({path.stat().st_size:,} bytes) is truncated or corrupt: {error}"
        raise ModelError(f"{what}; expected a whole safetensors file", hint=COPY_AGAIN) from error


def absent(path: Path) -> ModelError:
    """What to say where the weights at ``path`` are not."""
    pickled = any(path.parent.glob("*.bin")) or any(path.parent.glob("*.pt*"))
    hint = "Convert its pickled files to safetensors first." if pickled else COPY_AGAIN
    return ModelError(f"there is no {path}: expected weights in safetensors files", hint=hint)


def weight_paths(directory: Path) -> list[Path]:
    """The files that hold the weights: those of the index, if there is one. Raises ModelError."""
    index = directory / INDEX
    if not index.exists():
        return [directory / SINGLE]
    try:
        names = {str(name) for name in read_json(index)["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is not an index of weights: expected `weight_map`", hint=COPY_AGAIN) from error
    if outside := [name for name in names if Path(name).name != name]:
        raise ModelError(f"{index} names {outside[0]!r}: expected files beside it", hint=COPY_AGAIN)
    return [directory / name for name in sorted(names)]
