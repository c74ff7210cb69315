"""Checkpoints that are whole or not there, and that prove it.

A checkpoint is a directory ``step-00000400`` with two safetensors files, a JSON file and ``manifest.json``, which holds
the size and SHA-256 of each of them and of itself. It is written as a temporary directory, manifest last, synced to
disk and renamed: a process that dies at any moment leaves the earlier checkpoints as they were.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmos import __version__
from llmos.errors import CheckpointError
from llmos.files import sync_directory

FORMAT = 1
_MODEL, _OPTIMIZER, _STATE, _MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
_FILES = (_MODEL, _OPTIMIZER, _STATE)
_NAME = re.compile(r"step-(\d{8,})")
_TEMPORARY = ".saving-"

log = logging.getLogger("llmos.train")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Training after ``step`` steps.

    ``recipe`` is what determines the run (JSON): a run with another must not continue it. ``model`` and ``optimizer``
    are tensors by name; ``state`` holds numbers that are neither (JSON).
    """

    step: int
    recipe: Mapping[str, Any]
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]


def save(directory: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write ``checkpoint`` under ``directory``, then remove all but the ``keep`` newest up to it. Returns its path.

    Raises CheckpointError when it cannot be written; the earlier ones are then still there.
    """
    final = directory / f"step-{checkpoint.step:08d}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(directory)
        temporary = Path(tempfile.mkdtemp(dir=directory, prefix=_TEMPORARY))
        _write(temporary, checkpoint)
        if final.exists():  # a corrupt one that training fell back from, and has now overtaken
            final.rename(Path(tempfile.mkdtemp(dir=directory, prefix=_TEMPORARY)) / final.name)
        temporary.rename(final)
        sync_directory(directory)
        for step, path in _steps(directory)[keep:]:
            if step < checkpoint.step:
                shutil.rmtree(path)
        _remove_unfinished(directory)
    except (OSError, SafetensorError) as error:
        hint = "Make room or repair the storage; the next attempt resumes from the checkpoint before this one."
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"cannot write checkpoint {final}: {reason}", hint=hint) from error
    return final


def find_latest(directory: Path, recipe: Mapping[str, Any]) -> Path | None:
    """The newest checkpoint under ``directory`` that verifies; None when none was ever made.

    Says loudly when a newer one is damaged. Raises CheckpointError when all are damaged (naming file, expected and
    found SHA-256) or when the newest good one was made by another ``recipe`` (naming the fields that differ).
    """
    damage: list[CheckpointError] = []
    for _, path in _steps(directory):
        try:
            manifest = _verified_manifest(path)
        except CheckpointError as error:
            damage.append(error)
            continue
        for found in damage:
            log.error("DAMAGED CHECKPOINT, falling back to the one before it (%s): %s", path.name, found.message)
        _check_recipe(path, manifest["recipe"], recipe)
        return path
    if damage:
        first = damage[0].message + (f" (and {len(damage) - 1} older)" if damage[1:] else "")
        raise CheckpointError(f"no checkpoint verifies: {first}", hint=f"Delete {directory} to start over.")
    return None


def load(path: Path, device: torch.device) -> Checkpoint:
    """The checkpoint at ``path``, which :func:`find_latest` has verified, with its tensors on ``device``."""
    manifest = json.loads((path / _MANIFEST).read_bytes())
    return Checkpoint(
        manifest["step"],
        manifest["recipe"],
        load_file(path / _MODEL, device=str(device)),
        load_file(path / _OPTIMIZER, device=str(device)),
        json.loads((path / _STATE).read_bytes()),
    )


def _steps(directory: Path) -> list[tuple[int, Path]]:
    """Checkpoints by name, newest first."""
    found = directory.iterdir() if directory.is_dir() else ()
    named = [(int(match[1]), path) for path in found if (match := _NAME.fullmatch(path.name))]
    return sorted(named, reverse=True)


def _remove_unfinished(directory: Path) -> None:
    """Remove what a save that died left behind. Only one attempt of a job writes at a time."""
    for path in directory.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path)


def _write(directory: Path, checkpoint: Checkpoint) -> None:
    save_file({name: tensor.detach() for name, tensor in checkpoint.model.items()}, directory / _MODEL)
    save_file({name: tensor.detach() for name, tensor in checkpoint.optimizer.items()}, directory / _OPTIMIZER)
    (directory / _STATE).write_text(json.dumps(dict(checkpoint.state)))
    for name in _FILES:
        _sync_file(directory / name)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "step": checkpoint.step,
        "recipe": dict(checkpoint.recipe),
        "versions": {"llmos": __version__, "torch": torch.__version__},
        "files": {name: _fingerprint(directory / name) for name in _FILES},
    }
    manifest["sha256"] = _digest(manifest)
    (directory / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    _sync_file(directory / _MANIFEST)
    sync_directory(directory)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _digest(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _verified_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the checkpoint at ``path``. Raises CheckpointError unless every byte is as it was written."""
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        if not isinstance(manifest, dict):
            raise CheckpointError(f"{path / _MANIFEST}: expected a JSON object, found {type(manifest).__name__}")
        if manifest.get("sha256") != (found := _digest(manifest)):
            raise CheckpointError(f"{path / _MANIFEST}: expected sha256 {manifest.get('sha256')}, found {found}")
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{path / _MANIFEST}: expected format {FORMAT}, found {manifest['format']}")
        for name, expected in manifest["files"].items():
            if (found_print := _fingerprint(path / name)) != expected:
                raise CheckpointError(f"{path / name}: expected {_show(expected)}, found {_show(found_print)}")
    except ValueError as error:
        raise CheckpointError(f"{path / _MANIFEST}: expected JSON, found something else ({error})") from error
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return manifest


def _show(fingerprint: Mapping[str, Any]) -> str:
    return f"{fingerprint['bytes']} bytes with sha256 {fingerprint['sha256']}"


def _check_recipe(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    before, now = dict(_leaves(theirs)), dict(_leaves(ours))
    different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if different:
        shown = "; ".join(f"`{name}` was {before.get(name)!r}, is now {now.get(name)!r}" for name in different)
        hint = f"Give the spec it was made with, or delete {path.parent} to start over."
        raise CheckpointError(f"checkpoint {path} was made by another spec: {shown}", hint=hint)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers and texts of nested mappings, with dotted names."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
