"""Documents: what a file of text, JSON lines, Parquet or chats holds, read piece by piece, in constant memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from llmos.errors import DataError
from llmos.train import locations

Format = Literal["text", "jsonl", "parquet", "chat"]

ROLES = ("system", "user", "assistant", "tool")
ASSISTANT = "assistant"
_TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view())
_ROWS = 1024
"""Rows of a Parquet file that are in memory at one time."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was read: a file, the line that begins at a byte ``offset`` of it, or a row (from 1)."""

    name: str
    offset: int | None = None
    row: int | None = None

    def __str__(self) -> str:
        """As editors count lines. They are counted only when somebody asks. Raises DataError."""
        if self.row is not None:
            return f"{self.name}, row {self.row:,}"
        if self.offset is None:
            return self.name
        with locations.opened(self.name) as file:
            before = sum(block.count(b"\n") for block in _blocks(file, self.offset))
        return f"{self.name}, line {before + 1:,}"


@dataclass(frozen=True, slots=True)
class Document:
    """One text; ``digest`` is a SHA-256.

    Of a chat, ``messages`` are the whole, ``content`` is what the assistant says.
    """

    content: bytes
    digest: bytes
    place: Place
    messages: tuple[Mapping[str, Any], ...] | None = None

    @classmethod
    def of(cls, content: bytes, place: Place) -> Document:
        return cls(content, hashlib.sha256(content).digest(), place)

    @property
    def text(self) -> str:
        """Everything in it that a tokenizer should know."""
        if self.messages is None:
            return self.content.decode()
        return "\n".join(message["content"] or "" for message in self.messages)


@dataclass(frozen=True, slots=True)
class Unusable:
    """What should have been a document: where it is, and why it is none."""

    place: Place
    why: str

    def __str__(self) -> str:
        return f"{self.place} {self.why}"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the file ``name``: bytes ``start`` to ``stop`` - 1, or so many row groups of a Parquet file.

    Of JSON lines it has those that begin there. A text is always whole.
    """

    name: str
    format: Format
    field: str
    start: int
    stop: int


def pieces(name: str, format: Format, field: str, size_bytes: int, piece_bytes: int) -> Iterator[Piece]:
    """The file in parts of about ``piece_bytes``, as far as its format can be read in parts. Raises DataError."""
    if format == "text":
        yield Piece(name, format, field, 0, size_bytes)
    elif format == "parquet":
        with _parquet(name, field) as file:
            groups = file.metadata.num_row_groups
        size = max(1, groups * piece_bytes // max(1, size_bytes))
        yield from (Piece(name, format, field, start, min(start + size, groups)) for start in range(0, groups, size))
    else:
        for start in range(0, size_bytes, piece_bytes):
            yield Piece(name, format, field, start, min(start + piece_bytes, size_bytes))


def read(piece: Piece) -> Iterator[Document | Unusable]:
    """The documents of ``piece``, in order; empty texts and blank lines are none. Raises DataError."""
    if piece.format == "text":
        with locations.opened(piece.name) as file:
            yield Document.of(file.read(), Place(piece.name))
    elif piece.format == "parquet":
        yield from _rows(piece)
    else:
        for offset, line in _lines(piece):
            place = Place(piece.name, offset)
            try:
                document = _chat(line, place) if piece.format == "chat" else _text_of(line, piece.field, place)
            except ValueError as error:
                yield Unusable(place, str(error))
            else:
                if document.content:
                    yield document


def _lines(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in ``piece`` and are not blank, each with its offset."""
    with locations.opened(piece.name) as file:
        offset = max(0, piece.start - 1)
        file.seek(offset)
        if piece.start:  # the line that begins before is the other piece's
            offset += len(file.readline())
        while offset < piece.stop and (line := file.readline()):
            if line.strip():
                yield offset, line
            offset += len(line)


def _blocks(file: BinaryIO, stop: int) -> Iterator[bytes]:
    while stop > 0 and (block := file.read(min(stop, 2**20))):
        stop -= len(block)
        yield block


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: byte {line[error.start]:#04x} at offset {error.start} of the line") from None
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"is a JSON {type(found).__name__}: expected an object")
    return found


def _text_of(line: bytes, field: str, place: Place) -> Document:
    found = _object(line)
    if field not in found:
        raise ValueError(f"has no field `{field}`: found {', '.join(map(str, found)) or 'none'}")
    if not isinstance(found[field], str):
        raise ValueError(f"`{field}` is a {type(found[field]).__name__}: expected text")
    return Document.of(_utf8(found[field], field), place)


def _chat(line: bytes, place: Place) -> Document:
    messages = _object(line).get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("has no `messages`: expected a list of {role, content}")
    for number, message in enumerate(messages):
        _check_message(f"`messages[{number}]`", message)
    said = [message["content"] or "" for message in messages if message["role"] == ASSISTANT]
    if not any(said):
        raise ValueError("has no words of the assistant: there is nothing to learn in it")
    whole = json.dumps(messages, sort_keys=True).encode()
    return Document(_utf8("".join(said), "messages"), hashlib.sha256(whole).digest(), place, tuple(messages))


def _check_message(name: str, message: Any) -> None:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise ValueError(f"{name} is not a message: expected an object with `role` and `content`")
    if message["role"] not in ROLES:
        raise ValueError(f"{name} has the role {str(message['role'])[:40]!r}: expected {', '.join(ROLES)}")
    if not isinstance(message["content"], str | None):
        raise ValueError(f"{name}: its content is a {type(message['content']).__name__}: expected text")
    _utf8(message["content"] or "", name)


def _utf8(text: str, field: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"`{field}` has half a surrogate pair: expected Unicode text") from None


def _rows(piece: Piece) -> Iterator[Document | Unusable]:
    with _parquet(piece.name, piece.field) as file:
        groups = file.metadata
        row = sum(groups.row_group(group).num_rows for group in range(piece.start))
        batches = file.iter_batches(_ROWS, row_groups=range(piece.start, piece.stop), columns=[piece.field])
        for batch in batches:
            for number, text in enumerate(batch.column(0), row + 1):
                place = Place(piece.name, row=number)
                try:
                    content = (text.as_py() or "").encode()
                except UnicodeDecodeError:
                    yield Unusable(place, f"`{piece.field}` is not UTF-8")
                else:
                    if content:
                        yield Document.of(content, place)
            row += batch.num_rows


@contextmanager
def _parquet(name: str, field: str) -> Iterator[pq.ParquetFile]:
    """The Parquet file ``name``, which has a column ``field`` of text; else DataError."""
    with locations.opened(name) as source:
        try:
            file = pq.ParquetFile(source)
            columns = {column.name: column.type for column in file.schema_arrow}
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{name} is not a Parquet file: {error}", hint="Check data.format.") from error
        if field not in columns:
            what = f"{name} has no column `{field}`: found {', '.join(columns) or 'none'}"
            raise DataError(what, hint="Name the column with the text in `field`.", param="data.field")
        if columns[field] not in _TEXT_TYPES:
            what = f"{name}: column `{field}` is {columns[field]}: expected text"
            raise DataError(what, hint="Name the column with the text in `field`.", param="data.field")
        yield file
