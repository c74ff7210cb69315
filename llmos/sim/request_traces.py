"""Traces of requests to a served model: Azure's CSV and Mooncake's lines of JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from llmos.sim.tables import Fields, Malformed, Table, read_csv, read_json_lines

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request: seconds after the trace's first, tokens of its prompt and of its answer."""

    at_s: float
    prompt: int
    answer: int


def read_requests(path: Path, *, skip_bad_rows: bool = False) -> Table[Request]:
    """The requests at ``path``, by time, the first at 0: Mooncake's format if it ends in ``.jsonl``, else Azure's
    (``TIMESTAMP,ContextTokens,GeneratedTokens``). Raises NotFoundError, DataError."""
    if path.suffix == ".jsonl":
        table = read_json_lines(path, _of_mooncake, skip_bad_rows=skip_bad_rows)
    else:
        columns = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
        table = read_csv(path, columns, _of_azure, skip_bad_rows=skip_bad_rows)
    ordered = sorted(table.rows, key=lambda request: request.at_s)
    first_s = ordered[0].at_s if ordered else 0.0
    moved = (Request(request.at_s - first_s, request.prompt, request.answer) for request in ordered)
    return Table(tuple(moved), table.bad)


def _of_azure(row: Fields) -> Request:
    text = row.text("TIMESTAMP")
    try:  # seven digits of a second, of which Python reads six
        at = datetime.fromisoformat(text[:26]).replace(tzinfo=UTC)
    except ValueError:
        raise Malformed(f"TIMESTAMP is {text[:40]!r}: expected a date and time") from None
    return Request(at.timestamp(), row.whole("ContextTokens"), row.whole("GeneratedTokens"))


def _of_mooncake(row: dict[str, Any]) -> Request:
    return Request(_whole(row, "timestamp") / 1000, _whole(row, "input_length"), _whole(row, "output_length"))


def _whole(row: dict[str, Any], name: str) -> int:
    value = row.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Malformed(f"{name} is {str(value)[:40]!r}: expected a whole number of at least 0")
    return value


def tiled(requests: Sequence[Request], until_s: float, swing: float, rng: np.random.Generator) -> list[Request]:
    """``requests`` one copy after another until ``until_s``, thinned to a daily cycle: each is kept with a chance that
    is 1 at noon and 1 - ``swing`` at midnight; the trace begins at midnight."""
    span_s = max(requests[-1].at_s, 1.0)
    copies = int(until_s / span_s) + 1
    at = np.add.outer(np.arange(copies) * span_s, [request.at_s for request in requests]).ravel()
    chance = 1 - swing * (1 + np.cos(2 * np.pi * at / DAY_S)) / 2
    kept = np.flatnonzero((at < until_s) & (rng.random(len(at)) < chance)).tolist()
    return [Request(float(at[i]), requests[i % len(requests)].prompt, requests[i % len(requests)].answer) for i in kept]
