"""What is asked of one service, and what its replicas can do: measured from counters, over the last half minute."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean

from llmos.core.replicas import Rates, Traffic

WINDOW_S = 30.0
STEPS = 120
"""So many measured steps are remembered."""
GUESS_STEP_S, GUESS_SEQUENCE_S = 0.03, 0.001
"""What a step is taken to last until one was measured."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A service at ``at``: requests that arrived and tokens that were generated so far, requests now."""

    at: float
    arrived: int
    tokens: int
    running: int
    waiting: int


@dataclass(slots=True)
class Load:
    """The load of one service. Counters of several sources are added up; one that falls has begun anew."""

    arrived: int = 0
    tokens: int = 0
    _last: dict[str, int] = field(default_factory=dict)
    _samples: deque[Sample] = field(default_factory=deque)
    _steps: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=STEPS))
    _answer: float = 1.0

    def count(self, kind: str, source: str, value: int) -> int:
        """Take the counter ``kind`` (arrived, tokens) of ``source`` over, and say by how much it has grown."""
        before = self._last.get(f"{kind} {source}")
        self._last[f"{kind} {source}"] = value
        grown = value if before is None or value < before else value - before
        if before is None and kind == "tokens":
            grown = 0  # of a replica that was there before this process
        setattr(self, kind, getattr(self, kind) + grown)
        return grown

    def forget(self, source: str) -> None:
        """The source is gone."""
        for kind in ("arrived", "tokens"):
            self._last.pop(f"{kind} {source}", None)

    def sample(self, now: float, running: int, waiting: int, replicas: int) -> None:
        """Note how things are now, with so many ``replicas`` that answer."""
        if self._samples and now - self._samples[-1].at < 0.5:
            return
        new = Sample(now, self.arrived, self.tokens, running, waiting)
        if self._samples and replicas:
            self._measure(self._samples[-1], new, replicas)
        self._samples.append(new)
        while self._samples[0].at < now - WINDOW_S and len(self._samples) > 2:
            self._samples.popleft()

    def _measure(self, old: Sample, new: Sample, replicas: int) -> None:
        """A step adds a token to each running sequence, so it lasts as long as these need for one token."""
        running, made = min(old.running, new.running) / replicas, (new.tokens - old.tokens) / replicas
        if running >= 1 and made > 0:
            self._steps.append((running, running * (new.at - old.at) / made))

    def traffic(self) -> Traffic:
        """What arrives. Tokens of prompts are not counted: the time to read them is in the steps that were measured."""
        if len(self._samples) < 2:
            now = self._samples[-1] if self._samples else Sample(0.0, 0, 0, 0, 0)
            return Traffic(0.0, 0.0, self._answer, now.waiting, now.running)
        first, last = self._samples[0], self._samples[-1]
        middle = self._samples[len(self._samples) // 2]
        if arrived := last.arrived - first.arrived:
            self._answer = max(1.0, (last.tokens - first.tokens) / arrived)
        late = max(_rate(first, last), _rate(middle, last))
        return Traffic(late, 0.0, self._answer, last.waiting, last.running)

    def rates(self, most: int, start_s: float) -> Rates:
        """What one replica of ``most`` places does: a line through the steps that were measured (least squares)."""
        if not self._steps:
            return Rates(math.inf, GUESS_STEP_S, GUESS_SEQUENCE_S, most, start_s)
        mean_n, mean_s = fmean(n for n, _ in self._steps), fmean(s for _, s in self._steps)
        spread = sum((n - mean_n) ** 2 for n, _ in self._steps)
        slope = sum((n - mean_n) * (s - mean_s) for n, s in self._steps) / spread if spread > 0 else 0.0
        if spread < len(self._steps):  # of about one size: half of the step is taken to be for its sequences
            slope = mean_s / 2 / mean_n
        slope = min(max(slope, 0.0), mean_s / mean_n)
        return Rates(math.inf, max(mean_s - slope * mean_n, 1e-6), slope, most, start_s)


def _rate(a: Sample, b: Sample) -> float:
    """Requests per second between two samples."""
    return (b.arrived - a.arrived) / (b.at - a.at) if b.at > a.at else 0.0
