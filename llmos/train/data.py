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
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from llmos.errors import DataError
from llmos.files import read_json, sync_directory, write_json
from llmos.models.digest import digest as digest_of
from llmos.models.tokenizer import Tokenizer, train_bpe
from llmos.spec import Source
from llmos.train import baselines, encode, holdout
from llmos.train.documents import Piece, pieces, read
from llmos.train.encode import Made, Task
from llmos.train.holdout import Census, Split
from llmos.train.source_files import GROUP_BYTES, SourceFile, candidates, check_once, identified
from llmos.train.tokens import Shard, Tokens, dtype_of
from llmos.train.work import Work, grouped

_VERSION = 2
"""Raised whenever the same text gets other tokens or another tokenizer: older corpora are then made anew."""
_ABANDONED_S = 24 * 3600
"""A temporary directory this old belongs to a process that was killed."""
_DESCRIPTION = "corpus.json"
_TEMPORARY = ".new-"

Pieces = list[tuple[Piece, ...]]
"""The parts of a source, grouped into shards."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """A prepared corpus. Sizes are in tokens of its tokenizer; after each text there is an end-of-text token.

    ``sources`` are the shards to train on, by source. ``validation_bytes`` is the size of the held-out text (of
    ``chats``: of what the assistant says there); ``gzip_bits`` and ``unigram_bits`` are what ``gzip -9`` and the
    frequencies of bytes need for each byte of it.
    """

    directory: Path
    digest: str
    vocab_size: int
    train_tokens: int
    validation_tokens: int
    validation_bytes: int
    gzip_bits: float
    unigram_bits: float
    sources: tuple[tuple[Shard, ...], ...]
    held_out: Shard
    chats: bool = False

    @classmethod
    def load(cls, directory: Path) -> Self:
        """The corpus in ``directory``. Raises DataError when a file is missing or does not have its size."""
        try:
            found = read_json(directory / _DESCRIPTION)
            # corpora of before there were sources have one shard
            found.setdefault("sources", [[["train", found["train_tokens"], 0]]])
            found.setdefault("held_out", ["validation", found["validation_tokens"], 0])
            found["sources"] = tuple(tuple(Shard(*shard) for shard in shards) for shards in found["sources"])
            found["held_out"] = Shard(*found["held_out"])
            names = [field.name for field in fields(cls)[1:] if field.name in found]
            corpus = cls(directory, **{name: found[name] for name in names})
            sizes = {name: (directory / name).stat().st_size for name in corpus._sizes()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(directory, f"{type(error).__name__}: {error}") from error
        for name, expected in corpus._sizes().items():
            if sizes[name] != expected:
                raise _damaged(directory, f"{name} has {sizes[name]:,} bytes, expected {expected:,}")
        return corpus

    def train(self, source: int = 0) -> Tokens:
        """The tokens of a source to train on, mapped from disk. Raises DataError."""
        return self._tokens(self.sources[source])

    def validation(self) -> Tokens:
        """The held-out tokens, mapped from disk. Raises DataError."""
        return self._tokens([self.held_out])

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the tokens. Raises ModelError when its files are damaged."""
        return Tokenizer.load(self.directory)

    def _tokens(self, shards: Sequence[Shard]) -> Tokens:
        return Tokens(self.directory, shards, dtype_of(self.vocab_size, self.chats), self.vocab_size)

    def _sizes(self) -> dict[str, int]:
        """The files and their sizes in bytes."""
        width = dtype_of(self.vocab_size, self.chats).itemsize
        shards = [shard for shards in self.sources for shard in shards] + [self.held_out]
        sizes = {f"{shard.name}.bin": shard.tokens * width for shard in shards}
        if self.chats:
            sizes |= {f"{shard.name}.chats": shard.documents * 16 for shard in shards}
        return {**sizes, "validation.txt": self.validation_bytes}


def prepare(
    sources: Sequence[Source],
    *,
    chats: bool,
    vocab_size: int,
    validation_fraction: float,
    unusable: str,
    data_dir: Path,
    tokenizer: Tokenizer | None = None,
    report: Callable[[str], None],
    work_for: Callable[[int], Work],
) -> Corpus:
    """The corpus of ``sources``, made unless ``data_dir`` has it.

    About ``validation_fraction`` of the documents is held out. Without ``tokenizer`` one of at most ``vocab_size``
    tokens is trained on the rest. ``work_for`` a number of bytes says who does the work. ``report`` is told in words
    what happens. Several processes may prepare the same at once. Raises NotFoundError for a missing path, DataError
    for text that cannot be used (``unusable: refuse``; with ``skip``, such documents are left out aloud) or a prepared
    corpus that is damaged.
    """
    found = [candidates(source, chats, report) for source in sources]
    work = work_for(sum(candidate.size_bytes for each in found for candidate in each))
    files = [identified(each, report, work) for each in found]
    check_once(files)
    kind = {"chats": chats, "unusable": unusable}
    target = data_dir / _digest(files, _identity(tokenizer) if tokenizer else vocab_size, validation_fraction, kind)
    if target.exists():
        report(f"using the corpus prepared before: {target}")
        return Corpus.load(target)
    total = sum(file.size_bytes for each in files for file in each)
    report(f"preparing {sum(map(len, files)):,} files, {total:,} bytes")
    plan = [pieces_of(each) for each in files]
    split = _split(plan, validation_fraction, unusable, report, work)
    with _directory(target) as directory:
        (tokenizer or _trained(plan, split, vocab_size, report)).save(directory)
        _write(directory, plan, split, chats, work)
    corpus = Corpus.load(target)
    sizes = f"{corpus.train_tokens:,} tokens to train on, {corpus.validation_tokens:,} held out"
    report(f"prepared {target}: {sizes}; gzip needs {corpus.gzip_bits:.3f} bits per byte")
    return corpus


def _identity(tokenizer: Tokenizer) -> str:
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save(directory)
        return digest_of(directory)


def _digest(
    sources: Sequence[Sequence[SourceFile]], tokenizer: int | str, fraction: float, kind: dict[str, Any]
) -> str:
    """The identity of a corpus: its text, its tokenizer (a digest, or how many tokens to train) and how it is split.

    That of one source of plain text is what it was before there were others.
    """
    plain = len(sources) == 1 and all(file.format == "text" for file in sources[0])
    more = [] if plain else [kind, [[[file.format, file.field] for file in files] for files in sources]]
    whole = hashlib.sha256(json.dumps([_VERSION, tokenizer, fraction, *more]).encode())
    for files in sources:
        for file in files:
            whole.update(file.digest)
    return whole.hexdigest()


def pieces_of(files: Sequence[SourceFile]) -> Pieces:
    """What goes into each shard of a source."""
    parts = (piece for f in files for piece in pieces(f.name, f.format, f.field, f.size_bytes, GROUP_BYTES))
    sizes = {file.name: file.size_bytes for file in files}
    return list(grouped(parts, lambda piece: min(sizes[piece.name], GROUP_BYTES), GROUP_BYTES))


def _split(plan: Sequence[Pieces], fraction: float, unusable: str, report: Callable[[str], None], work: Work) -> Split:
    """How the documents are split. Raises DataError for unusable ones, unless they may be left out."""
    groups = [group for groups in plan for group in groups]
    census = Census(holdout.limit_of(fraction))
    for part in work(partial(count, census.limit), groups, "reading documents"):
        census.merge(part)
    if census.unusable:
        if unusable == "refuse":
            hint = "Repair them, or leave them out with `unusable: skip`."
            raise DataError(census.complaint, hint=hint, param="data.unusable")
        report(f"left out {census.complaint}")
    if census.documents == 1 and groups[0][0].format == "text":
        return holdout.split_lines(groups[0][0], fraction)
    return holdout.split(census)


def count(limit: bytes, group: Sequence[Piece]) -> Census:
    """What there is in ``group``; documents with a digest below ``limit`` are held out."""
    return Census(limit).count(item for piece in group for item in read(piece))


def _trained(plan: Sequence[Pieces], split: Split, vocab_size: int, report: Callable[[str], None]) -> Tokenizer:
    report(f"training a tokenizer of {vocab_size:,} tokens")
    return train_bpe(encode.texts((piece for groups in plan for group in groups for piece in group), split), vocab_size)


def _write(directory: Path, plan: Sequence[Pieces], split: Split, chats: bool, work: Work) -> None:
    """All files of the corpus but the tokenizer, which is there. ``directory`` is named by its digest."""
    groups = [(source, group) for source, groups in enumerate(plan) for group in groups]
    names = ["train"] + [f"train-{number:05}" for number in range(1, len(groups))]
    tasks = [Task(directory, name, group, split, chats) for name, (_, group) in zip(names, groups, strict=True)]
    made = list(work(encode.encode, tasks, "tokenizing"))
    sources = tuple(
        tuple(one.train for one, (of, _) in zip(made, groups, strict=True) if of == source)
        for source in range(len(plan))
    )
    for number, shards in enumerate(sources):
        if not any(shard.tokens for shard in shards):
            what = f"all {len(plan[number])} documents of sources[{number}] are held out: expected some to train on"
            raise DataError(what, hint="Give it more text.", param="data.sources")
    corpus = _describe(directory, made, sources, encode.join(directory, [one.held_out for one in made], chats), chats)
    description = asdict(corpus)
    del description["directory"]  # what is moved stays what it is
    write_json(directory / _DESCRIPTION, description)


def _describe(
    directory: Path, made: Sequence[Made], sources: tuple[tuple[Shard, ...], ...], held_out: Shard, chats: bool
) -> Corpus:
    validation_bytes = (directory / "validation.txt").stat().st_size
    train = np.sum([one.train_bytes for one in made], axis=0)
    validation = np.sum([one.held_out_bytes for one in made], axis=0)
    return Corpus(
        directory,
        directory.name,
        Tokenizer.load(directory).vocab_size,
        train_tokens=sum(shard.tokens for shards in sources for shard in shards),
        validation_tokens=held_out.tokens,
        validation_bytes=validation_bytes,
        gzip_bits=gzip_bits(directory / "validation.txt", made),
        unigram_bits=baselines.unigram_bits(train, validation),
        sources=sources,
        held_out=held_out,
        chats=chats,
    )


def gzip_bits(text: Path, made: Sequence[Made]) -> float:
    """For each byte of the held-out ``text``: as one file, or each document by itself if that is less."""
    whole, apart = baselines.gzip_bytes(_blocks(text)), sum(one.gzip_bytes for one in made)
    return 8 * min(whole, apart) / text.stat().st_size


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(2**20):
            yield block


@contextmanager
def _directory(target: Path) -> Iterator[Path]:
    """A directory of the name of ``target`` to be filled; at the end of the block it is there, or else all is gone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=_TEMPORARY) as temporary:
        directory = Path(temporary) / target.name
        directory.mkdir()
        yield directory
        _publish(directory, target)


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


def _damaged(directory: Path, what: str) -> DataError:
    hint = f"Delete {directory}: it is made again from the text."
    return DataError(f"the prepared corpus {directory} is damaged: {what}", hint=hint)
