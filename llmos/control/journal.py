"""What a job's attempts wrote: logs in pieces, metrics as rows. Read while they are being written."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Callable, Iterator
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from llmos.errors import UsageError
from llmos.layout import AttemptDirs, JobDirs

PIECE_BYTES = 256 * 1024
_BLOCK_BYTES = 64 * 1024
_POSITION_BITS = 40
_LARGEST_OFFSET = 2**53 - 1  # exact in every JSON reader

Row = dict[str, Any]


def read_log(dirs: JobDirs, attempts: int, offset: int, *, final: bool) -> Row:
    """``{text, offset, final}``: at most 256 KiB of the logs of attempts 1 to ``attempts``, one after the other.

    ``offset`` is 0 or what an earlier answer said: the attempt above 40 bits of position in its log, so that lines
    which come late into an old log do not shift those of the next. ``final`` says that the job has ended. A character
    is never split, and bytes that are not UTF-8 become U+FFFD. Raises UsageError for an offset that cannot be.
    """
    if not 0 <= offset <= _LARGEST_OFFSET:
        raise UsageError(f"offset {offset}: expected 0 or the offset of an earlier answer", param="offset")
    attempt, position = max(offset >> _POSITION_BITS, 1), offset & ((1 << _POSITION_BITS) - 1)
    text, room = "", PIECE_BYTES
    while attempt <= attempts:
        log, last = dirs.attempt(attempt).log, attempt == attempts
        piece, size = _piece(log, position, room, closed=final or not last)
        text, position, room = text + piece, position + size, room - size
        if last or position < _size(log):
            break
        attempt, position = attempt + 1, 0
    return {"text": text, "offset": attempt << _POSITION_BITS | position, "final": final}


def read_metrics(dirs: JobDirs, attempts: int, after: int) -> list[Row]:
    """The rows with a step greater than ``after``, in order: of each step the newest, whether a later attempt has done
    it again or the same one, after a roll-back.

    A line that is not whole yet is left for later; numbers that JSON does not have (NaN) become None.
    """
    newest_first = (
        row for number in range(attempts, 0, -1) for row in _newest_first(dirs.attempt(number).metrics, _row)
    )
    found: list[Row] = []
    before = float("inf")
    for row in takewhile(lambda row: row["step"] > after, newest_first):
        if row["step"] < before:
            found.append(row)
            before = row["step"]
    return found[::-1]


def read_events(dirs: JobDirs, attempts: int) -> list[Row]:
    """``{at, what, why}`` of everything that happened to training in the attempts, oldest first."""
    numbers = range(attempts, 0, -1)
    return [event for number in numbers for event in _newest_first(dirs.attempt(number).events, _event)][::-1]


def first_metrics(dirs: AttemptDirs) -> Row | None:
    """The row that an attempt wrote first; None while there is none."""
    try:
        with dirs.metrics.open("rb") as file:
            return _row(file.readline())
    except OSError:
        return None


def last_metrics(dirs: AttemptDirs, most: int) -> list[Row]:
    """The rows, at most so many, that an attempt wrote last, in the order that they were written."""
    return list(islice(_newest_first(dirs.metrics, _row), most))[::-1]


def newest_metrics(dirs: JobDirs, attempts: int) -> Row:
    """The row that was written last, empty if there is none."""
    for number in range(attempts, 0, -1):
        for row in _newest_first(dirs.attempt(number).metrics, _row):
            return row
    return {}


def _piece(log: Path, position: int, room: int, *, closed: bool) -> tuple[str, int]:
    """Text of at most ``room`` bytes from ``position`` on, and how many bytes it was. ``closed``: no more will come."""
    try:
        with log.open("rb") as file:
            file.seek(position)
            content = file.read(room)
    except FileNotFoundError:
        return "", 0
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(content, final=closed and len(content) < room)
    return text, len(content) - len(decoder.getstate()[0])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _newest_first(path: Path, read: Callable[[bytes], Row | None]) -> Iterator[Row]:
    """What ``read`` makes of the lines of a file, from its end to its beginning; it is read as far as asked for."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        end, rest = file.seek(0, os.SEEK_END), b""
        while end:
            start = max(0, end - _BLOCK_BYTES)
            file.seek(start)
            rest, *lines = (file.read(end - start) + rest).split(b"\n")
            yield from filter(None, map(read, reversed(lines)))
            end = start
        yield from filter(None, [read(rest)])


def _row(line: bytes) -> Row | None:
    row = _object(line)
    return row if row and isinstance(row.get("step"), int) else None


def _event(line: bytes) -> Row | None:
    event = _object(line)
    return event if event and event.keys() == {"at", "what", "why"} else None


def _object(line: bytes) -> Row | None:
    """What a line says; None for one that is not whole: the beginning of a JSON object is never one itself."""
    try:
        row = json.loads(line, parse_constant=lambda _: None)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
