"""Text made ready to train on, once: a tokenizer, the tokens to train on, the tokens to measure with.

A corpus is a directory named by the digest of everything that determines it; it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from llmos.errors import DataError
from llmos.files import read_json, sync_directory, write_json
from llmos.models.digest import digest as digest_of
from llmos.models.tokenizer import Tokenizer, train_bpe
from llmos.train import baselines, texts
from llmos.train.texts import Document

_VERSION = 2
"""Raised whenever the same text gets other tokens or another tokenizer: older corpora are then made anew."""
_PIECE = 2**20
"""Characters that are encoded as one text. Larger documents are cut after the end of a line."""
_ABANDONED_S = 24 * 3600
"""A temporary directory this old belongs to a process that was killed."""
_DESCRIPTION = "corpus.json"
_TEMPORARY = ".new-"


@dataclass(frozen=True, slots=True)
class Corpus:
    """A prepared corpus. Sizes are in tokens of its tokenizer, an end-of-text token after each document included.

    ``validation_bytes`` is the size of the held-out text; ``gzip_bits`` and ``unigram_bits`` are what ``gzip -9`` and
    the frequencies of bytes need for each byte of it.
    """

    directory: Path
    digest: str
    vocab_size: int
    train_tokens: int
    validation_tokens: int
    validation_bytes: int
    gzip_bits: float
    unigram_bits: float

    @classmethod
    def load(cls, directory: Path) -> Self:
        """The corpus in ``directory``. Raises DataError when a file is missing or does not have its size."""
        try:
            found = read_json(directory / _DESCRIPTION)
            corpus = cls(directory, **{field.name: found[field.name] for field in fields(cls)[1:]})
            sizes = {name: (directory / name).stat().st_size for name in corpus._sizes()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(directory, f"{type(error).__name__}: {error}") from error
        for name, expected in corpus._sizes().items():
            if sizes[name] != expected:
                raise _damaged(directory, f"{name} has {sizes[name]:,} bytes, expected {expected:,}")
        return corpus

    def tokens(self, part: str) -> NDArray[np.unsignedinteger[Any]]:
        """All tokens of ``train`` or ``validation``, mapped from disk."""
        return np.memmap(self.directory / f"{part}.bin", dtype=_dtype(self.vocab_size), mode="r")

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the tokens. Raises ModelError when its files are damaged."""
        return Tokenizer.load(self.directory)

    def _sizes(self) -> dict[str, int]:
        """The files and their sizes in bytes."""
        width = _dtype(self.vocab_size).itemsize
        return {
            "train.bin": self.train_tokens * width,
            "validation.bin": self.validation_tokens * width,
            "validation.txt": self.validation_bytes,
        }


def prepare(
    paths: Sequence[str],
    *,
    vocab_size: int,
    validation_fraction: float,
    data_dir: Path,
    tokenizer: Tokenizer | None = None,
    report: Callable[[str], None],
) -> Corpus:
    """The corpus of the text at ``paths`` (see :func:`llmos.train.texts.read`), made unless ``data_dir`` has it.

    About ``validation_fraction`` of the files is held out. Without ``tokenizer`` one of at most ``vocab_size`` tokens
    is trained on the rest. ``report`` is told in words what happens. Several processes may prepare the same at once.
    Raises NotFoundError for a missing path, DataError for text that cannot be used or a prepared corpus that is
    damaged.
    """
    documents = texts.read(paths, report)
    digest = _digest(documents, _identity(tokenizer) if tokenizer else vocab_size, validation_fraction)
    target = data_dir / digest
    if target.exists():
        report(f"using the corpus prepared before: {target}")
        return Corpus.load(target)
    report(f"preparing {len(documents):,} documents, {sum(len(d.content) for d in documents):,} bytes of text")
    train, held_out = texts.split(documents, validation_fraction)
    if tokenizer is None:
        report(f"training a tokenizer of {vocab_size:,} tokens")
        tokenizer = train_bpe((document.content.decode() for document in train), vocab_size)
    data_dir.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(data_dir)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=_TEMPORARY) as temporary:
        directory = Path(temporary) / digest
        directory.mkdir()
        _write(directory, tokenizer, train, held_out)
        _publish(directory, target)
    corpus = Corpus.load(target)
    sizes = f"{corpus.train_tokens:,} tokens to train on, {corpus.validation_tokens:,} held out"
    report(f"prepared {target}: {sizes}; gzip needs {corpus.gzip_bits:.3f} bits per byte")
    return corpus


def _identity(tokenizer: Tokenizer) -> str:
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save(directory)
        return digest_of(directory)


def _digest(documents: Sequence[Document], tokenizer: int | str, fraction: float) -> str:
    """The identity of a corpus: its text, its tokenizer (a digest, or how many tokens to train) and how it is split."""
    whole = hashlib.sha256(json.dumps([_VERSION, tokenizer, fraction]).encode())
    for document in documents:
        whole.update(document.digest)
    return whole.hexdigest()


def _write(directory: Path, tokenizer: Tokenizer, train: Sequence[Document], held_out: Sequence[Document]) -> None:
    """All files of the corpus. ``directory`` is named by its digest."""
    tokenizer.save(directory)
    contents = [document.content for document in held_out]
    validation = b"".join(contents)
    (directory / "validation.txt").write_bytes(validation)
    corpus = Corpus(
        directory,
        directory.name,
        tokenizer.vocab_size,
        train_tokens=_encode(directory / "train.bin", tokenizer, train),
        validation_tokens=_encode(directory / "validation.bin", tokenizer, held_out),
        validation_bytes=len(validation),
        gzip_bits=baselines.gzip_bits(contents),
        unigram_bits=baselines.unigram_bits(b"".join(document.content for document in train), validation),
    )
    description = asdict(corpus)
    del description["directory"]  # what is moved stays what it is
    write_json(directory / _DESCRIPTION, description)


def _encode(path: Path, tokenizer: Tokenizer, documents: Sequence[Document]) -> int:
    """Write the tokens of ``documents`` to ``path``, each with an end-of-text token. Returns how many there are."""
    dtype = _dtype(tokenizer.vocab_size)
    with path.open("wb") as file:
        for document in documents:
            for ids in tokenizer.encode_batch(list(_pieces(document.content.decode()))):
                file.write(np.array(ids, dtype=dtype).tobytes())
            file.write(np.array([tokenizer.eos_id], dtype=dtype).tobytes())
        return file.tell() // dtype.itemsize


def _pieces(text: str) -> Iterator[str]:
    """``text`` in parts of at most _PIECE characters that end with a line, or anywhere in a line longer than that."""
    start = 0
    while start < len(text):
        end = start + _PIECE
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


def _publish(directory: Path, target: Path) -> None:
    """Make ``directory`` durable and call it ``target``, unless another process was faster: it made the same."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_directory(directory)
    try:
        directory.rename(target)
    except OSError:
        if not target.exists():
            raise
    sync_directory(target.parent)


def _remove_abandoned(data_dir: Path) -> None:
    for path in data_dir.glob(f"{_TEMPORARY}*"):
        with suppress(FileNotFoundError):  # another process removes them as well
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(path)


def _dtype(vocab_size: int) -> np.dtype[np.unsignedinteger[Any]]:
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


def _damaged(directory: Path, what: str) -> DataError:
    hint = f"Delete {directory}: it is made again from the text."
    return DataError(f"the prepared corpus {directory} is damaged: {what}", hint=hint)
