"""How independent pieces of work are done: here one after the other, or by many at once; the results are the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_REPORT_INTERVAL_S = 10.0


class Work(Protocol):
    """Somebody who does work."""

    def __call__(self, do: Callable[[T], R], items: Sequence[T], what: str) -> Iterable[R]:
        """``do(item)`` for each of ``items``, in their order; ``what`` is its name in reports. Raises what it raises.

        ``do``, the items and the results must be fit to be sent to another process.
        """


def here(report: Callable[[str], None]) -> Work:
    """Work in this process."""

    def work(do: Callable[[T], R], items: Sequence[T], what: str) -> Iterator[R]:
        progress = Progress(report, what, len(items))
        for item in items:
            yield do(item)
            progress.advance()

    return work


class Progress:
    """Says from time to time how far ``what`` has come; nothing if it is done before the first time."""

    def __init__(self, report: Callable[[str], None], what: str, total: int) -> None:
        self._report, self._what, self._total = report, what, total
        self._done, self._began_s = 0, time.monotonic()
        self._said_s = self._began_s

    def advance(self) -> None:
        """One more is done."""
        self._done += 1
        now_s = time.monotonic()
        if now_s - self._said_s > _REPORT_INTERVAL_S:
            self._said_s = now_s
            left_s = (now_s - self._began_s) * (self._total - self._done) / self._done
            share = 100 * self._done // self._total
            self._report(f"{self._what}: {share} %, {self._done:,} of {self._total:,} parts, {left_s:,.0f} s left")


def grouped(items: Iterable[T], size_of: Callable[[T], int], limit: int) -> Iterator[tuple[T, ...]]:
    """``items`` in their order in groups whose sizes reach ``limit``, but for the last."""
    group: list[T] = []
    size = 0
    for item in items:
        group.append(item)
        size += size_of(item)
        if size >= limit:
            yield tuple(group)
            group, size = [], 0
    if group:
        yield tuple(group)
