"""Prepared tokens, mapped from disk: many files that read like one sequence."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmos.errors import DataError


class Shard(NamedTuple):
    """One file of tokens, ``<name>.bin``. Of chats there is ``<name>.chats`` as well: where each one begins."""

    name: str
    tokens: int
    documents: int


def dtype_of(vocab_size: int, chats: bool) -> np.dtype[Any]:
    """How tokens are stored. Those of chats have a sign: ``~token`` is read, but not to be predicted."""
    if chats:
        return np.dtype("<i4")
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


class Tokens:
    """The tokens of ``shards`` one after the other: ``len(tokens)``, and ``tokens[start:stop]`` as int64.

    Files are mapped once and stay so: a file that is deleted stays readable until the end. One that is cut off would
    end the process with SIGBUS when its lost part is touched, so sizes are looked at before each access.
    """

    def __init__(self, directory: Path, shards: Sequence[Shard], dtype: np.dtype[Any], vocab_size: int) -> None:
        """Raises DataError when a file is missing or does not have its size."""
        self._paths = [directory / f"{shard.name}.bin" for shard in shards]
        self._vocab_size, self._dtype = vocab_size, dtype
        self._ends = np.cumsum([shard.tokens for shard in shards], dtype=np.int64)
        self._maps = [_mapped(path, shard.tokens * dtype.itemsize) for path, shard in zip(self._paths, shards)]  # noqa: B905

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, wanted: slice) -> NDArray[np.int64]:
        """Raises DataError when a file was changed, and for a token that the vocabulary does not have."""
        start, stop, _ = wanted.indices(len(self))
        first = int(np.searchsorted(self._ends, start, side="right"))
        parts = []
        while start < stop:
            begin = int(self._ends[first - 1]) if first else 0
            end = min(stop, int(self._ends[first]))
            parts.append(self._read(first, start - begin, end - begin))
            start, first = end, first + 1
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _read(self, shard: int, start: int, stop: int) -> NDArray[np.int64]:
        mapped, path = self._maps[shard], self._paths[shard]
        if mapped is None or start >= stop:
            return np.empty(0, dtype=np.int64)
        _check_size(path, mapped, len(mapped))
        count, offset = stop - start, start * self._dtype.itemsize
        found = np.frombuffer(mapped, self._dtype, count, offset).astype(np.int64)
        ids = np.where(found < 0, ~found, found)
        if (highest := int(ids.max())) >= self._vocab_size:
            at = start + int(ids.argmax())
            what = f"{path}: token {highest} at {at:,} is beyond the vocabulary of {self._vocab_size:,}"
            raise DataError(what, hint=f"Delete {path.parent}: it is made again from the text.")
        return found


def _mapped(path: Path, size_bytes: int) -> mmap.mmap | None:
    """The file in memory; None if it is empty, which cannot be mapped."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size_bytes else None
    except (OSError, ValueError) as error:  # ValueError: it is empty
        raise _damaged(path, str(getattr(error, "strerror", None) or error)) from error
    if mapped is not None:
        _check_size(path, mapped, size_bytes)
    return mapped


def _check_size(path: Path, mapped: mmap.mmap, expected: int) -> None:
    try:
        found = mapped.size()  # of the file, now
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    if found != expected:
        raise _damaged(path, f"it has {found:,} bytes, expected {expected:,}")


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path} is damaged: {what}", hint=f"Delete {path.parent}: it is made again from the text.")
