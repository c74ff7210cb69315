"""Files that are there whole or not at all, also after a power cut."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomic(path: Path, content: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Write ``content`` to ``path`` in one step: a temporary file beside it, fsync, rename, fsync of the directory.

    Not ``durable``: without waiting for the disk. After a power cut the file may be empty, or not there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # created 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if durable:
        sync_directory(path.parent)


def write_json(path: Path, value: object, *, mode: int = 0o644, durable: bool = True) -> None:
    """Write ``value`` as JSON to ``path`` in one step."""
    write_atomic(path, json.dumps(value, indent=1).encode() + b"\n", mode=mode, durable=durable)


def read_json(path: Path) -> Any:
    """The JSON in ``path``, None if there is no such file. Raises ValueError for anything that is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None


def append_json(path: Path, row: object) -> None:
    """Append ``row`` as a line of JSON to ``path``, in one write: readers never see half of one that matters."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def keep_lines(path: Path, wanted: Callable[[Any], bool]) -> None:
    """Drop the lines of ``path`` (JSON, one each) whose value is not ``wanted``, and a last one that is not whole."""
    if path.exists():
        lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        kept = [line for line in lines if wanted(json.loads(line))]
        write_atomic(path, b"".join(kept))


def sync_directory(path: Path) -> None:
    """Make renames and new names in ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
