"""What a checkpoint's ``manifest.json`` says, and whether the files are what it says: sizes and SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from llmos import __version__
from llmos.errors import CheckpointError
from llmos.files import sync_directory
from llmos.parallel.world import World
from llmos.train.shards import Fingerprint

FORMAT = 2
_READABLE = (1, FORMAT)
"""Format 1 is what one rank wrote: the same names in files that are called otherwise."""
STATE, MANIFEST = "state.json", "manifest.json"
_READERS = 4


def write(
    directory: Path, step: int, recipe: Mapping[str, Any], state: Mapping[str, Any], files: Mapping[str, Fingerprint]
) -> None:
    """Write ``state`` and, last, the manifest of ``directory``, which holds ``files``; make them durable."""
    (directory / STATE).write_text(json.dumps(dict(state)))
    _sync_file(directory / STATE)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "step": step,
        "recipe": dict(recipe),
        "versions": {"llmos": __version__, "torch": torch.__version__},
        "files": {**files, STATE: _fingerprint(directory / STATE)},
    }
    manifest["sha256"] = _digest(manifest)
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1))
    _sync_file(directory / MANIFEST)
    sync_directory(directory)


def read(path: Path) -> dict[str, Any]:
    """The manifest of the checkpoint at ``path``. Raises CheckpointError unless it is as it was written, or OSError."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path / MANIFEST}: expected JSON, found something else ({error})") from error
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{path / MANIFEST}: expected a JSON object, found {type(manifest).__name__}")
    if manifest.get("sha256") != (found := _digest(manifest)):
        raise CheckpointError(f"{path / MANIFEST}: expected sha256 {manifest.get('sha256')}, found {found}")
    if manifest["format"] not in _READABLE:
        formats = " or ".join(map(str, _READABLE))
        raise CheckpointError(f"{path / MANIFEST}: expected format {formats}, found {manifest['format']}")
    return manifest


def problem(path: Path, world: World) -> str | None:
    """What is wrong with the checkpoint at ``path``, if anything is: this rank's share of the files is looked at."""
    try:
        files = read(path)["files"]
        by_size = sorted(files, key=lambda name: (-files[name]["bytes"], name))
        with ThreadPoolExecutor(_READERS) as pool:  # hashing lets other threads run
            checks = [pool.submit(_check_file, path / name, files[name]) for name in by_size[world.rank :: world.size]]
        for check in checks:
            check.result()
        if strange := {found.name for found in path.glob("*.safetensors")} - files.keys():
            return f"{path / min(strange)}: expected only what {MANIFEST} names"
    except CheckpointError as error:
        return error.message
    except OSError as error:
        return f"{error.filename}: cannot be read: {error.strerror}"
    return None


def _check_file(path: Path, expected: Fingerprint) -> None:
    if (found := _fingerprint(path)) != expected:
        raise CheckpointError(f"{path}: expected {_show(expected)}, found {_show(found)}")


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _digest(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _show(fingerprint: Mapping[str, Any]) -> str:
    return f"{fingerprint['bytes']} bytes with sha256 {fingerprint['sha256']}"
