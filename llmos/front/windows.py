"""How much was taken within the last minute: a moving window, exact about what is given back.

Why no token bucket: a bucket that holds a minute's amount lets twice as much through in its worst minute, and what is
given back after it has filled up again would let through even more. A moving window admits at most the limit in any
minute, whenever that begins (E. P. Rathgeb, "Modeling and performance comparison of policing mechanisms for ATM
networks", IEEE JSAC 9(3), 1991, compares both). It remembers amounts by the second in which they were taken, so that
it needs 61 numbers however much is asked.
"""

from __future__ import annotations

from collections import deque

WINDOW_S = 60
_LEAVES_S = WINDOW_S + 1
"""What was taken within second ``n`` counts until ``n + 61``: then its last instant is a whole minute ago."""
_ROUNDING_S = 1e-3
"""Longer than the error of adding up two times, shorter than anybody minds."""


class Window:
    """Amounts taken within the last minute. Times (``now``) are in seconds and never go back."""

    __slots__ = ("_seconds", "taken")

    def __init__(self) -> None:
        self._seconds: deque[list[int]] = deque()  # [second, amount], the oldest first
        self.taken = 0

    def look(self, now: float) -> int:
        """What counts ``now``."""
        while self._seconds and self._seconds[0][0] + _LEAVES_S <= now:
            self.taken -= self._seconds.popleft()[1]
        return self.taken

    def take(self, amount: int, now: float) -> int:
        """Count ``amount``, and say where: for :meth:`give_back`."""
        self.look(now)
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1][1] += amount
        else:
            self._seconds.append([second, amount])
        self.taken += amount
        return second

    def give_back(self, amount: int, second: int, now: float) -> None:
        """``amount`` of what was taken in ``second`` was not needed. What has left the window since stays as it is."""
        self.look(now)
        for slot in reversed(self._seconds):  # most requests are short
            if slot[0] == second:
                slot[1] -= amount
                self.taken -= amount
                return

    def wait_s(self, amount: int, limit: int, now: float) -> float:
        """Seconds until ``amount`` (at most ``limit``) may be taken, if nothing else is. 0: now."""
        excess = self.look(now) + amount - limit
        if excess <= 0:
            return 0.0
        for second, taken in self._seconds:
            excess -= taken
            if excess <= 0:
                return second + _LEAVES_S - now + _ROUNDING_S
        return self.empty_s(now)

    def empty_s(self, now: float) -> float:
        """Seconds until nothing that was taken counts any more."""
        self.look(now)
        return self._seconds[-1][0] + _LEAVES_S - now + _ROUNDING_S if self._seconds else 0.0
