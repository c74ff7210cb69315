"""Trace files, row by row: what is wrong in them is said with its line, and skipped only on request."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

from llmos.errors import DataError, NotFoundError

R = TypeVar("R")
T = TypeVar("T")
SHOWN = 10
"""Malformed rows that an error shows."""


class Malformed(Exception):
    """A row, or a field of it, that is not what it should be."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be read: its line in the file (from 1), and why."""

    line: int
    why: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.why}"


@dataclass(frozen=True, slots=True)
class Table(Generic[T]):
    """What a file holds, in the file's order, and the rows that were skipped."""

    rows: tuple[T, ...]
    bad: tuple[BadRow, ...] = ()


class Fields:
    """The fields of one CSV row by the name of their column. A column that the file lacks is as one that is empty."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def text(self, name: str) -> str:
        """The field ``name`` without blanks around it; empty if it is not there."""
        return self._values.get(name, "").strip()

    def number(self, name: str, empty: float | None = None, *, least: float = 0.0, most: float = math.inf) -> float:
        """The field ``name``, which must be a finite number in [least, most]. ``empty`` stands for an empty field;
        without it an empty field is malformed. Raises Malformed."""
        text = self.text(name)
        if not text and empty is not None:
            return empty
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not (least <= number <= most and math.isfinite(number)):
            upper = f" and at most {most:g}" if most < math.inf else ""
            raise Malformed(f"{name} is {text[:40]!r}: expected a number of at least {least:g}{upper}")
        return number

    def whole(self, name: str, empty: int | None = None, *, most: float = math.inf) -> int:
        """As :meth:`number`, for a whole number from 0. Raises Malformed."""
        number = self.number(name, empty, most=most)
        if number != int(number):
            raise Malformed(f"{name} is {number:g}: expected a whole number")
        return int(number)


def read_csv(
    path: Path, needed: tuple[str, ...], parse: Callable[[Fields], T], *, skip_bad_rows: bool = False
) -> Table[T]:
    """The rows of the CSV file at ``path``, whose first row names the columns; those in ``needed`` must be there.

    Raises NotFoundError without a file, DataError that names the lines of rows that ``parse`` finds Malformed, unless
    ``skip_bad_rows``; a missing column cannot be skipped.
    """

    with _opened(path) as file:
        lines = csv.reader(file)
        header = [name.strip() for name in next(lines, [])]
        if missing := [name for name in needed if name not in header]:
            raise DataError(
                f"{path}: no column {', '.join(missing)} in its first line",
                hint=f"Expected a CSV file with at least the columns {', '.join(needed)}.",
            )
        numbered = ((lines.line_num, values) for values in lines if values)
        return _collected(path, numbered, lambda values: parse(_fields(header, values)), skip_bad_rows)


def read_json_lines(path: Path, parse: Callable[[dict[str, Any]], T], *, skip_bad_rows: bool = False) -> Table[T]:
    """The objects of the file at ``path``, one per line. Raises as :func:`read_csv`."""
    with _opened(path) as file:
        numbered = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        return _collected(path, numbered, lambda line: parse(_object(line)), skip_bad_rows)


def _opened(path: Path) -> TextIO:
    """Bytes that are no UTF-8 become characters that no number has, so that their row is found to be malformed."""
    try:
        return path.open(encoding="utf-8-sig", errors="replace", newline="")
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}", hint="Check the path.") from None


def _collected(path: Path, raw: Iterable[tuple[int, R]], parse: Callable[[R], T], skip_bad_rows: bool) -> Table[T]:
    rows: list[T] = []
    bad: list[BadRow] = []
    try:
        for line, values in raw:
            try:
                rows.append(parse(values))
            except Malformed as error:
                bad.append(BadRow(line, str(error)))
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV file: {error}") from None
    if bad and not skip_bad_rows:
        raise DataError(f"{path}: {said(bad)}", hint="`--skip-bad-rows` goes on without them.")
    return Table(tuple(rows), tuple(bad))


def said(bad: Sequence[BadRow]) -> str:
    """How many rows are malformed, and the first of them, a line each."""
    count = f"{len(bad)} malformed row{'s' if len(bad) != 1 else ''}"
    more = [f"and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
    return "\n  ".join([count, *map(str, bad[:SHOWN]), *more])


def _fields(header: Sequence[str], values: Sequence[str]) -> Fields:
    if len(values) != len(header):
        raise Malformed(f"{len(values)} fields: expected {len(header)}")
    return Fields(dict(zip(header, values, strict=True)))


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Malformed("not a JSON object")
    return value
