"""The text that a job's paths name: found, read, checked, and split into what is trained on and what is held out."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmos.errors import DataError, NotFoundError

_NAMES_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Document:
    """One UTF-8 text; ``digest`` is its SHA-256."""

    content: bytes
    digest: bytes

    @classmethod
    def of(cls, content: bytes) -> Document:
        return cls(content, hashlib.sha256(content).digest())


def read(paths: Sequence[str], report: Callable[[str], None]) -> list[Document]:
    """The documents that ``paths`` name, in the order of their digests: where files lie changes nothing.

    A path is a file, a directory (all files below it) or a glob (``**``: any depth); names that start with a dot are
    found only when named. ``report`` is told about files that are left out: copies, empty ones and, unless named
    themselves, those that are not UTF-8. Raises NotFoundError for a path that does not exist, DataError for a named
    file that is not UTF-8, a file that cannot be read, and when there is no text.
    """
    named = {Path(path).expanduser() for path in paths}
    files = {file: file in named for path in sorted(named) for file in ([path] if path.is_file() else _find(path))}
    documents, not_text = _documents(files)
    if not_text:
        report(f"left out {_files(len(not_text))} not UTF-8 text: {_names(not_text)}")
    kept = {document.digest: document for document in documents if document.content}
    if left_out := len(documents) - len(kept):
        report(f"left out {_files(left_out)} empty or copies of others")
    if not kept:
        what = f"there is no text in {_names(files)}: expected UTF-8 text that is not empty"
        raise DataError(what, hint="Check data.path.", param="data.path")
    return [kept[digest] for digest in sorted(kept)]


def split(documents: Sequence[Document], fraction: float) -> tuple[list[Document], list[Document]]:
    """Documents to train on, and documents to hold out: about ``fraction`` of them, at least one on each side.

    The content decides, so a document stays on its side when others come and go. A single document is split by lines,
    its end is held out. Raises DataError when it has one line only.
    """
    if len(documents) == 1:
        return _split_lines(documents[0], fraction)
    by_chance = sorted(documents, key=lambda document: document.digest)
    limit = fraction * 2**64
    held_out = sum(int.from_bytes(document.digest[:8], "big") < limit for document in by_chance)
    count = min(max(held_out, 1), len(documents) - 1)
    return by_chance[count:], by_chance[:count]


def _find(path: Path) -> list[Path]:
    """The files below the directory, or that match the glob, ``path``, sorted."""
    if path.is_dir():
        pattern = f"{glob.escape(str(path))}/**"
    elif glob.has_magic(str(path)):
        pattern = str(path)
    else:
        what = f"there is no {path}: expected a file, a directory or a glob of UTF-8 text"
        raise NotFoundError(what, hint="Check data.path.", param="data.path")
    found = sorted(file for file in map(Path, glob.glob(pattern, recursive=True)) if file.is_file())
    if not found:
        what = f"no file matches {path}" if pattern == str(path) else f"there is no file below {path}"
        raise DataError(f"{what}: expected UTF-8 text", hint="Check data.path.", param="data.path")
    return found


def _documents(files: dict[Path, bool]) -> tuple[list[Document], list[Path]]:
    """The documents in ``files``, and those that are not text. Raises DataError for one that was named (True)."""
    documents, not_text = [], []
    for path, named in files.items():
        try:
            content = path.read_bytes()
            content.decode()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}", hint="Check its permissions.") from error
        except UnicodeDecodeError as error:
            if named:
                what = f"{path} is not UTF-8 text: byte {content[error.start]:#04x} at offset {error.start}"
                raise DataError(what, hint="Convert it, or leave it out.", param="data.path") from error
            not_text.append(path)
        else:
            documents.append(Document.of(content))
    return documents, not_text


def _split_lines(document: Document, fraction: float) -> tuple[list[Document], list[Document]]:
    lines = document.content.splitlines(keepends=True)
    if len(lines) < 2:
        raise DataError(
            "the text is one file of one line: expected at least two lines, to train on one and hold out another",
            hint="Add text to data.path.",
            param="data.path",
        )
    first = min(max(round(len(lines) * (1 - fraction)), 1), len(lines) - 1)
    return [Document.of(b"".join(lines[:first]))], [Document.of(b"".join(lines[first:]))]


def _files(number: int) -> str:
    return "1 file that is" if number == 1 else f"{number:,} files that are"


def _names(paths: Iterable[Path]) -> str:
    names = [str(path) for path in paths]
    more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
