"""What a core has done: counts, and how fast it is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

WINDOW_S = 5.0
"""Tokens per second are of about the last so many seconds."""
_MARK_S = 0.5


class Meter:
    """Counts for operators. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._steps = self._tokens = self._preemptions = 0
        self._prompt_tokens = self._prefix_tokens = 0
        self._marks: deque[tuple[float, int]] = deque()  # (time in s, tokens by then)

    def began(self, prompt: int, cached: int) -> None:
        """A prompt of so many tokens is read from now on; ``cached`` of them need not be."""
        self._prompt_tokens += prompt
        self._prefix_tokens += cached

    def preempted(self, count: int) -> None:
        """So many had to give their blocks back."""
        self._preemptions += count

    def stepped(self, tokens: int) -> None:
        """A step is over, and so many tokens were chosen."""
        self._steps += 1
        self._tokens += tokens
        now = self._clock()
        if not self._marks or now - self._marks[-1][0] >= _MARK_S:
            self._marks.append((now, self._tokens))
            while now - self._marks[0][0] > WINDOW_S:
                self._marks.popleft()

    def stats(self) -> dict[str, Any]:
        """JSON-able. ``prefix_hit_rate`` is of all tokens of prompts; None before the first."""
        return {
            "steps": self._steps,
            "tokens": self._tokens,
            "tokens_per_s": round(self._rate(), 1),
            "preemptions": self._preemptions,
            "prefix_tokens": self._prefix_tokens,
            "prefix_hit_rate": self._prefix_tokens / self._prompt_tokens if self._prompt_tokens else None,
        }

    def _rate(self) -> float:
        now = self._clock()
        marks = [mark for mark in self._marks if now - mark[0] <= WINDOW_S]
        if not marks or now == marks[0][0]:
            return 0.0
        return (self._tokens - marks[0][1]) / (now - marks[0][0])
