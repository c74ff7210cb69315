"""Stop strings in a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Passes a text on until a stop string is complete; what may become one is held back.

    The text ends before the stop string that is complete first; of several that end at the same place, before the
    longest. So the pieces in which the text comes make no difference.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """More text. Returns what is safe to show of it and of what was held back; nothing once ``found``."""
        if self.found is not None:
            return ""
        if not self._stops:
            return text
        held = self._held + text
        ends = [(held.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in held]
        if ends:
            end, _, self.found = min(ends)
            self._held = ""
            return held[: end - len(self.found)]
        cut = len(held) - self._unsure(held)
        self._held = held[cut:]
        return held[:cut]

    def flush(self) -> str:
        """What was held back: the text has ended, and no stop string came of it."""
        held, self._held = self._held, ""
        return held

    def _unsure(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        longest = min(len(text), max(map(len, self._stops)) - 1)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self._stops)), 0)
