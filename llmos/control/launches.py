"""Launches of nodes that fail: which kinds, why, and when to try again.

Ray's autoscaler tells in its log alone what a cloud answered; its state has the fact without the cause. Everything here
follows from that log, so that a control module which starts again knows the same.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from llmos.core.types import NodeKind

PAUSE_S = 10.0
"""How long no node of a kind is asked for after a launch has failed; twice as long after each further one."""
LONGEST_PAUSE_S = 600.0
_LINE = re.compile(
    r"(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+\t.* -- "
    r"(?P<what>Failed to launch|Launched) \d+ nodes of type (?P<kind>[^\s:]+?)(?:\.|: (?P<why>.*))"
)


@dataclass(frozen=True, slots=True)
class _Trouble:
    """``count`` launches have failed one after the other, the last at ``at`` (seconds since the epoch), for ``why``."""

    at: float
    count: int
    why: str


class Launches:
    """What the autoscaler's log says; the file need not exist yet."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._read = 0
        self._trouble: dict[str, _Trouble] = {}

    def look(self) -> None:
        """Read what has been written since the last look."""
        for line in self._news():
            if found := _LINE.fullmatch(line):
                self._note(found["what"], found["kind"], _seconds(found["at"]), found["why"] or "")

    def held(self, kind: NodeKind) -> NodeKind:
        """``kind`` with why its last launch failed, if it did, and until when none is to be tried."""
        trouble = self._trouble.get(kind.name)
        if trouble is None:
            return kind
        pause_s = min(PAUSE_S * 2.0 ** min(trouble.count - 1, 16), LONGEST_PAUSE_S)
        return replace(kind, trouble=trouble.why, not_before=trouble.at + pause_s)

    def _note(self, what: str, kind: str, at: float, why: str) -> None:
        if what == "Launched":
            self._trouble.pop(kind, None)
            return
        known = self._trouble.get(kind)
        self._trouble[kind] = _Trouble(at, known.count + 1 if known else 1, why or "the launch failed")

    def _news(self) -> Iterator[str]:
        """The whole lines that came since, without their ends. A file that is shorter than it was is a new one."""
        with suppress(FileNotFoundError), self._log.open("rb") as log:
            size = log.seek(0, 2)
            if size < self._read:
                self._read = 0
            if size > self._read:
                log.seek(self._read)
                text, end, _ = log.read(size - self._read).rpartition(b"\n")
                self._read += len(text) + len(end)
                yield from text.decode(errors="replace").splitlines()


def _seconds(written: str) -> float:
    """The time that the log names, in the zone of this machine, as seconds since the epoch."""
    return time.mktime(time.strptime(written, "%Y-%m-%d %H:%M:%S"))
