"""Blacks secrets out of text before it is written anywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote

MARK = "[redacted]"
_SHORTEST_LINE = 4
"""Shorter lines of a secret of several lines say nothing, and would black out half of what is readable."""


class Redactor:
    """Replaces every occurrence of ``values`` by ``[redacted]``, also as ``repr``, JSON or a URL would show them.

    Each line of a value of several lines is a secret of its own, so text may be handed in line by line.
    """

    def __init__(self, values: Iterable[str]) -> None:
        needles = {needle for value in values for needle in _needles(value)}
        longest_first = sorted(needles, key=lambda needle: (-len(needle), needle))
        # A lookahead finds occurrences that overlap: of `abc` and `bcd`, nothing of `abcd` may be left
        self._found = re.compile(f"(?=({'|'.join(map(re.escape, longest_first))}))") if needles else None

    def redact(self, text: str) -> str:
        """``text`` without the secrets."""
        if self._found is None:
            return text
        end = 0
        pieces: list[str] = []
        for match in self._found.finditer(text):
            first, last = match.span(1)
            if first > end or not pieces:
                pieces += [text[end:first], MARK]
            end = max(end, last)
        return "".join([*pieces, text[end:]])


def _needles(value: str) -> Iterator[str]:
    if not value.strip():
        return
    for part in (value, value.strip()):
        yield from (part, repr(part)[1:-1], json.dumps(part)[1:-1], quote(part, safe=""))
    lines = [line.strip() for line in value.splitlines()]
    if len(lines) > 1:
        yield from (line for line in lines if len(line) >= _SHORTEST_LINE)
