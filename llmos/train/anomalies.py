"""Steps that went wrong: what counts as one, and what is done about it. PURE.

Every rank decides for itself from numbers that are the same on all of them, so all decide the same.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from llmos.spec import Anomalies

Verdict = Literal["go_on", "skip", "roll_back", "stop"]

_MAD_TO_SIGMA = 1.4826
"""The median distance from the median of a normal distribution, as a standard deviation. Spikes do not move it."""
_LEAST_SIGMA = 0.01
"""Of the median: losses that have hardly differed yet say nothing about how much they may."""


@dataclass(frozen=True, slots=True)
class Past:
    """What is remembered of the steps before: the last ``losses`` that moved the weights, how many steps in a row were
    skipped, and how often the job was rolled back."""

    losses: tuple[float, ...] = ()
    skips: int = 0
    roll_backs: int = 0

    def after(self, verdict: Verdict, loss: float, window: int) -> Past:
        """The past of the next step."""
        if verdict == "go_on":
            return replace(self, losses=(*self.losses, loss)[-window:], skips=0)
        return replace(
            self, skips=self.skips + (verdict == "skip"), roll_backs=self.roll_backs + (verdict == "roll_back")
        )

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint: with it, a run that resumes decides what an unbroken one does."""
        return asdict(self)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        """What :meth:`to_json` returned."""
        return cls(tuple(found["losses"]), found["skips"], found["roll_backs"])


def judge(policy: Anomalies, past: Past, loss: float, grad_norm: float) -> tuple[Verdict, str]:
    """What to do about a step, and why (empty: nothing is wrong). ``grad_norm`` is that before clipping."""
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        wanted, why = policy.nan, f"the loss is {loss}, the gradient's norm {grad_norm}: expected finite numbers"
    elif policy.spike != "ignore" and loss > (most := highest(past.losses, policy)):
        wanted, why = policy.spike, f"the loss is {loss:.4f}: expected at most {most:.4f}, after those before it"
    else:
        return "go_on", ""
    done = {"skip": past.skips, "roll_back": past.roll_backs}.get(wanted, 0)
    if done >= policy.limit:
        return "stop", f"{why}; `anomalies.limit: {policy.limit}` is reached ({wanted})"
    return wanted, why


def highest(losses: Sequence[float], policy: Anomalies) -> float:
    """The highest loss that is no spike after ``losses``; infinity while they are too few to tell."""
    if len(losses) < max(2, policy.window // 2):
        return math.inf
    middle = statistics.median(losses)
    sigma = _MAD_TO_SIGMA * statistics.median(abs(loss - middle) for loss in losses)
    return middle + policy.spike_sigma * max(sigma, _LEAST_SIGMA * abs(middle))
