"""Text into shards of tokens, piece by piece, so that many can do it at once and a corpus need not fit in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llmos.errors import DataError
from llmos.models import Tokenizer
from llmos.train import baselines, conversation
from llmos.train.documents import Document, Piece, Unusable, read
from llmos.train.holdout import Split
from llmos.train.tokens import Shard, dtype_of

_CUT = 2**20
"""Characters that are encoded as one text, or together. Larger documents are cut after the end of a line."""

HELD_OUT = "held-out-"
"""What a shard holds out; all of it becomes ``validation``."""


@dataclass(frozen=True, slots=True)
class Task:
    """One shard to be made of ``pieces``, written to ``directory``, where the tokenizer is."""

    directory: Path
    name: str
    pieces: tuple[Piece, ...]
    split: Split
    chats: bool


@dataclass(frozen=True, slots=True)
class Made:
    """A finished shard, and what it holds out. ``gzip_bytes`` is the size of the held-out texts, each compressed."""

    train: Shard
    held_out: Shard
    train_bytes: NDArray[np.int64]
    held_out_bytes: NDArray[np.int64]
    gzip_bytes: int


def encode(task: Task) -> Made:
    """Write the files of one shard; the same task always writes the same. Unusable documents are left out.

    Raises DataError for a chat that the tokenizer's template does not take.
    """
    tokenizer = Tokenizer.load(task.directory)
    dtype, counts, gzip_bytes = dtype_of(tokenizer.vocab_size, task.chats), np.zeros((2, 256), dtype=np.int64), 0
    with ExitStack() as stack:
        text = stack.enter_context((task.directory / f"{HELD_OUT}{task.name}.txt").open("wb"))
        names = task.name, f"{HELD_OUT}{task.name}"
        writers = [stack.enter_context(_Writer(task.directory, name, dtype, task.chats)) for name in names]
        for held_out, document, ids in _encoded(task, tokenizer):
            writers[held_out].write(ids)
            counts[int(held_out)] += baselines.byte_counts(document.content)
            if held_out:
                text.write(document.content)
                gzip_bytes += baselines.gzip_bytes([document.content])
    return Made(writers[0].shard, writers[1].shard, counts[0], counts[1], gzip_bytes)


def texts(pieces: Iterable[Piece], split: Split) -> Iterator[str]:
    """The texts that a tokenizer is trained on: those that are not held out."""
    for piece in pieces:
        for document in read(piece):
            if isinstance(document, Document):
                yield from (part.text for held_out, part in split.parts(document) if not held_out)


def join(directory: Path, shards: Sequence[Shard], chats: bool) -> Shard:
    """One shard ``validation`` out of what ``shards`` hold out, which is removed."""
    joined = Shard("validation", sum(shard.tokens for shard in shards), sum(shard.documents for shard in shards))
    for suffix in ("bin", "txt"):
        with (directory / f"validation.{suffix}").open("wb") as file:
            for shard in shards:
                _append(file, directory / f"{shard.name}.{suffix}")
    if chats:
        read_chats(directory, shards).tofile(directory / "validation.chats")
        for shard in shards:
            (directory / f"{shard.name}.chats").unlink()
    return joined


def read_chats(directory: Path, shards: Sequence[Shard]) -> NDArray[np.int64]:
    """Of each chat of ``shards``: its first token, and how many come before its first that counts; [documents, 2]."""
    parts, before = [np.empty((0, 2), dtype="<i8")], 0
    for shard in shards:
        part = np.fromfile(directory / f"{shard.name}.chats", dtype="<i8").reshape(-1, 2)
        part[:, 0] += before
        parts.append(part)
        before += shard.tokens
    return np.concatenate(parts)


class _Writer:
    """Writes ``<name>.bin`` and, for chats, ``<name>.chats``."""

    def __init__(self, directory: Path, name: str, dtype: np.dtype[Any], chats: bool) -> None:
        self._dtype, self._name = dtype, name
        self._file = (directory / f"{name}.bin").open("wb")
        self._index = (directory / f"{name}.chats").open("wb") if chats else None
        self._tokens = self._documents = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._file, self._index):
            if file:
                file.close()

    def write(self, ids: Sequence[int]) -> None:
        """Add a document."""
        array = np.array(ids, dtype=self._dtype)
        self._file.write(array.tobytes())
        if self._index:
            self._index.write(np.array([self._tokens, int((array >= 0).argmax())], dtype="<i8").tobytes())
        self._tokens, self._documents = self._tokens + len(ids), self._documents + 1

    @property
    def shard(self) -> Shard:
        return Shard(self._name, self._tokens, self._documents)


@dataclass(slots=True)
class _Batch:
    """Documents that are encoded together: one at a time leaves all cores but one idle."""

    parts: list[tuple[bool, Document, list[str]]] = field(default_factory=list)
    characters: int = 0

    def add(self, held_out: bool, document: Document) -> None:
        text = document.content.decode()
        self.parts.append((held_out, document, list(cut(text))))
        self.characters += len(text)

    def encoded(self, tokenizer: Tokenizer) -> Iterator[tuple[bool, Document, list[int]]]:
        ids = iter(tokenizer.encode_batch([text for _, _, cuts in self.parts for text in cuts]))
        for held_out, document, cuts in self.parts:
            yield held_out, document, [token for _ in cuts for token in next(ids)] + [tokenizer.eos_id]


def _encoded(task: Task, tokenizer: Tokenizer) -> Iterator[tuple[bool, Document, list[int]]]:
    """Every document, on which side it is, and its tokens: of texts, an end-of-text token is the last."""
    documents = (item for piece in task.pieces for item in read(piece) if not isinstance(item, Unusable))
    parts = (part for document in documents for part in task.split.parts(document))
    if task.chats:
        for held_out, document in parts:
            yield held_out, document, _chat(tokenizer, document)
        return
    batch = _Batch()
    for held_out, document in parts:
        batch.add(held_out, document)
        if batch.characters >= _CUT:
            yield from batch.encoded(tokenizer)
            batch = _Batch()
    yield from batch.encoded(tokenizer)


def _chat(tokenizer: Tokenizer, document: Document) -> list[int]:
    assert document.messages is not None
    try:
        return conversation.encode(tokenizer, document.messages)
    except DataError as error:
        raise DataError(f"{document.place}: {error.message}", hint=error.hint, param="data.path") from error


def cut(text: str) -> Iterator[str]:
    """``text`` in parts of at most _CUT characters that end with a line, or anywhere in a line longer than that."""
    start = 0
    while start < len(text):
        end = start + _CUT
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


def _append(file: BinaryIO, path: Path) -> None:
    """Move what is in ``path`` to the end of ``file``."""
    with path.open("rb") as part:
        while block := part.read(2**20):
            file.write(block)
    os.unlink(path)
