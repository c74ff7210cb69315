"""The files of a job's sources: found, told apart by their content, checked. Copies and empty files are left out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.parse import urlsplit

from llmos.errors import DataError
from llmos.spec import Source
from llmos.spec.data import is_uri
from llmos.train import locations
from llmos.train.documents import Format
from llmos.train.work import Work, grouped

GROUP_BYTES = 2**28
"""What one piece of work reads. Small enough for many to share a large corpus, large enough that starting one is not
what takes time."""
_NAMES_SHOWN = 10
_BY_EXTENSION: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file before it was read. One that the job names itself must be usable; others are left out if they are not."""

    name: str
    format: Format
    field: str
    named: bool
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file whose content is known: ``digest`` is its SHA-256."""

    name: str
    format: Format
    field: str
    size_bytes: int
    digest: bytes


def candidates(source: Source, chats: bool, report: Callable[[str], None]) -> list[Candidate]:
    """The files that ``source`` names, by name. Raises NotFoundError and DataError.

    With ``chats``, JSON lines are chats, and files of other formats are left out aloud, or refused if named.
    """
    named = {path if is_uri(path) else str(Path(path).expanduser()) for path in source.path}
    names = sorted({name for path in sorted(named) for name in locations.find(path)})
    found, wrong = [], []
    for name in names:
        format = _format(name, source, chats)
        if chats and format != "chat":
            if name in named:
                what = f"{name} is read as {format}: expected JSON lines with `messages` for `objective: sft`"
                raise DataError(what, hint="Name it .jsonl, or say `format: chat`.", param="data.format")
            wrong.append(name)
        else:
            found.append(Candidate(name, format, source.field, name in named, locations.size_bytes(name)))
    if wrong:
        report(f"left out {_files(len(wrong))} not chats: {_names(wrong)}")
    return found


def identified(found: Sequence[Candidate], report: Callable[[str], None], work: Work) -> list[SourceFile]:
    """What ``found`` holds, in the order of the digests: where files lie changes nothing.

    ``report`` is told about files that are left out: copies, empty ones and, unless named themselves, texts that are
    not UTF-8. Raises DataError for a named text that is not UTF-8, a file that cannot be read, and when nothing is
    left.
    """
    groups = list(grouped(found, lambda candidate: candidate.size_bytes, GROUP_BYTES))
    files = [file for group in work(_identify, groups, "reading files") for file in group]
    not_text = [candidate.name for candidate, file in zip(found, files, strict=True) if file is None]
    if not_text:
        report(f"left out {_files(len(not_text))} not UTF-8 text: {_names(not_text)}")
    text = [file for file in files if file is not None]
    kept = {file.digest: file for file in reversed(text) if file.size_bytes}
    if left_out := len(text) - len(kept):
        report(f"left out {_files(left_out)} empty or copies of others")
    if not kept:
        what = f"there is no text in {_names(candidate.name for candidate in found)}: expected some that is not empty"
        raise DataError(what, hint="Check data.path.", param="data.path")
    return [kept[digest] for digest in sorted(kept)]


def check_once(sources: Sequence[Sequence[SourceFile]]) -> None:
    """Raises DataError when two sources have a file of the same content: which weight should it have?"""
    seen: dict[bytes, tuple[int, str]] = {}
    for number, files in enumerate(sources):
        for file in files:
            other, name = seen.setdefault(file.digest, (number, file.name))
            if other != number:
                what = f"{file.name} of sources[{number}] is the same as {name} of sources[{other}]"
                raise DataError(f"{what}: expected each text in one source", param="data.sources")


def _format(name: str, source: Source, chats: bool) -> Format:
    if source.format != "auto":
        return source.format
    path = urlsplit(name).path if is_uri(name) else name
    format = _BY_EXTENSION.get(PurePosixPath(path).suffix.lower(), "text")
    return "chat" if chats and format == "jsonl" else format


def _identify(group: Sequence[Candidate]) -> list[SourceFile | None]:
    """The files of ``group``; None for one that is no text and need not be."""
    return [_read(candidate) for candidate in group]


def _read(candidate: Candidate) -> SourceFile | None:
    with locations.opened(candidate.name) as file:
        if candidate.format == "text":
            content = file.read()  # whole, as it will be encoded
            if not _is_text(candidate, content):
                return None
            size, digest = len(content), hashlib.sha256(content)
        else:
            digest = hashlib.file_digest(cast(Any, file), "sha256")
            size = file.tell()
    return SourceFile(candidate.name, candidate.format, candidate.field, size, digest.digest())


def _is_text(candidate: Candidate, content: bytes) -> bool:
    """Whether it is UTF-8. Raises DataError when it must be."""
    try:
        content.decode()
        return True
    except UnicodeDecodeError as error:
        if not candidate.named:
            return False
        what = f"{candidate.name} is not UTF-8 text: byte {content[error.start]:#04x} at offset {error.start}"
        raise DataError(what, hint="Convert it, or leave it out.", param="data.path") from error


def _files(number: int) -> str:
    return "1 file that is" if number == 1 else f"{number:,} files that are"


def _names(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _NAMES_SHOWN:,} more" if len(every) > _NAMES_SHOWN else ""
    return ", ".join(every[:_NAMES_SHOWN]) + more
