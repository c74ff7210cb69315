"""Copies of a job's checkpoints on other storage, made in the background, and brought back where there are none."""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from llmos.errors import CheckpointError, UsageError
from llmos.files import sync_directory
from llmos.train import checkpoint
from llmos.train.locations import CANNOT_OPEN, file_system
from llmos.train.manifest import MANIFEST

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Between attempts, give or take a half."""
_BLOCK_BYTES = 1 << 24

T = TypeVar("T")

log = logging.getLogger("llmos.train")


class Copies:
    """Keeps at ``uri``/JOB what is in JOB/checkpoints: a copy is whole once its manifest, which comes last, is there.

    ``uri`` is anything that pyarrow or fsspec opens: ``s3://``, ``gs://``, ``file:///`` and more. Raises UsageError for
    one that neither knows.
    """

    def __init__(self, uri: str, directory: Path) -> None:
        self._uri, self._directory = uri, directory
        self._storage, root = _open(uri)
        self._root = f"{root}/{directory.parent.name}"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="copies")
        self._due = threading.Event()

    def update(self) -> None:
        """Copy, in the background, what has no copy yet; remove copies of what is no longer kept."""
        if not self._due.is_set():  # else one that has not begun will see it
            self._due.set()
            self._thread.submit(self._update)

    def close(self) -> None:
        """Wait until the copies are made, or given up."""
        self._thread.shutdown()

    def fetch(self) -> Path | None:
        """Bring the newest whole copy back, if there is any. Raises CheckpointError if the storage does not answer."""
        try:
            return _retried(self._fetch)
        except OSError as error:
            hint = "Check `checkpoint.storage` and its credentials; without it in the spec, training starts over."
            raise CheckpointError(f"cannot read the checkpoints at {self._uri}: {error}", hint=hint) from error

    def _update(self) -> None:
        self._due.clear()
        try:
            for _, path in reversed(checkpoint.saved(self._directory)):
                with suppress(FileNotFoundError):  # no longer kept
                    _retried(lambda path=path: self._copy(path))  # type: ignore[misc]
            _retried(self._remove_others)
        except OSError as error:
            log.error("CHECKPOINT NOT COPIED to %s, training goes on: %s", self._uri, error)

    def _copy(self, path: Path) -> None:
        if not self._is_file(f"{path.name}/{MANIFEST}"):
            self._storage.create_dir(f"{self._root}/{path.name}", recursive=True)
            for file in sorted(path.iterdir(), key=lambda file: file.name == MANIFEST):
                self._send(file, f"{self._root}/{path.name}/{file.name}")
            log.info("copied %s to %s", path.name, self._uri)

    def _send(self, file: Path, target: str) -> None:
        with file.open("rb") as source, self._storage.open_output_stream(target) as sink:
            shutil.copyfileobj(source, sink, _BLOCK_BYTES)

    def _remove_others(self) -> None:
        here = {path.name for _, path in checkpoint.saved(self._directory)}
        for name in self._whole():
            if name < max(here, default="") and name not in here:
                self._storage.delete_file(f"{self._root}/{name}/{MANIFEST}")  # from now on it is not whole
                self._storage.delete_dir(f"{self._root}/{name}")

    def _fetch(self) -> Path | None:
        """The newest whole copy, in a temporary directory that gets its name last."""
        whole = self._whole()
        if not whole:
            return None
        name, source = max(whole), f"{self._root}/{max(whole)}"
        self._directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._directory, prefix=checkpoint.TEMPORARY) as temporary:
            target = Path(temporary) / name
            target.mkdir()
            for info in self._list(source):
                with self._storage.open_input_stream(info.path) as file, (target / info.base_name).open("wb") as sink:
                    shutil.copyfileobj(file, sink, _BLOCK_BYTES)
            target.rename(self._directory / name)
        sync_directory(self._directory)
        log.info("brought %s back from %s", name, self._uri)
        return self._directory / name

    def _whole(self) -> list[str]:
        """The names of the copies that are whole."""
        names = [info.base_name for info in self._list(self._root) if checkpoint.NAME.fullmatch(info.base_name)]
        return [name for name in names if self._is_file(f"{name}/{MANIFEST}")]

    def _list(self, path: str) -> list[Any]:
        from pyarrow.fs import FileSelector

        return list(self._storage.get_file_info(FileSelector(path, allow_not_found=True)))

    def _is_file(self, name: str) -> bool:
        return bool(self._storage.get_file_info(f"{self._root}/{name}").is_file)


def _open(uri: str) -> tuple[Any, str]:
    """The file system that holds ``uri``, and the path in it."""
    try:
        storage, root = file_system(uri)
    except CANNOT_OPEN as error:
        raise _unusable(uri, error) from error
    return storage, root.rstrip("/")


def _unusable(uri: str, error: Exception) -> UsageError:
    hint = "Use a URI such as s3://bucket/dir, gs://bucket/dir or file:///mnt/dir."
    return UsageError(f"`checkpoint.storage: {uri}`: {error}", hint=hint, param="checkpoint.storage")


def _retried(do: Callable[[], T]) -> T:
    """What ``do`` returns; after an OSError it is called again, at growing intervals. FileNotFoundError is final."""
    for pause_s in PAUSES_S:
        try:
            return do()
        except FileNotFoundError:
            raise
        except OSError as error:
            log.warning("copying checkpoints: %s; trying again", error)
            time.sleep(pause_s * random.uniform(0.5, 1.5))
    return do()
