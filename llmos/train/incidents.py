"""What has gone wrong in a training so far: it is judged, told, and saved, so that a resume goes on in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmos.errors import DivergenceError
from llmos.spec import TrainJob
from llmos.train.anomalies import Past, Verdict, judge
from llmos.train.events import record
from llmos.train.feed import Feed

_SHOWN_SAMPLES = 32
"""That a message about a step names."""


class Incidents:
    """The incidents of ``job``. All ranks have the same; the one that has ``events``, a file, tells of them.

    Batches are counted from 0: that of a step is ``step`` + :attr:`skipped`.
    """

    def __init__(self, job: TrainJob, feed: Feed, events: Path | None) -> None:
        self._job, self._feed, self._events = job, feed, events
        self._past = Past()
        self._passed: list[list[int]] = []  # first and last of the batches that roll-backs have moved past

    @property
    def skipped(self) -> int:
        """How many batches roll-backs have moved past."""
        return sum(last + 1 - first for first, last in self._passed)

    def judge(self, step: int, loss: float, grad_norm: float) -> Verdict:
        """What to do about ``step`` (from 0), as ``job.anomalies`` says. Raises DivergenceError if that is to stop."""
        verdict, why = judge(self._job.anomalies, self._past, loss, grad_norm)
        if verdict == "stop":
            raise self.fatal(step, why)
        if why and self._events:
            record(self._events, verdict, f"{self._where(step)}: {why}")
        self._past = self._past.after(verdict, loss, self._job.anomalies.window)
        return verdict

    def fatal(self, step: int, why: str) -> DivergenceError:
        """The error that ends training at ``step``: it names what the step has read."""
        batch, size = step + self.skipped, self._job.batch_size
        ids = self._feed.ids(batch)
        shown = ", ".join(ids[:_SHOWN_SAMPLES]) + (
            f" and {size - _SHOWN_SAMPLES} more" if size > _SHOWN_SAMPLES else ""
        )
        read = f"samples {batch * size:,} to {(batch + 1) * size - 1:,} of the job (source/epoch/row: {shown})"
        hint = (
            "Lower optimizer.learning_rate, lengthen warmup_steps, or use precision: fp32; if the samples are to "
            "blame, go on behind them with `anomalies: {nan: roll_back, spike: roll_back}`."
        )
        return DivergenceError(f"{self._where(step)}: {why}; it read {read}", hint=hint)

    def rolled_back(self, step: int, batch: int, past: Past) -> None:
        """Note that training is back at ``step``, whose checkpoint has been loaded, and goes on behind ``batch``.

        ``past`` is what :attr:`past` was before.
        """
        first = step + self.skipped
        self._passed = [*self._passed, [first, batch]]
        self._past = replace(past, losses=self._past.losses)
        if self._events:
            count = f"roll-back {past.roll_backs} of at most {self._job.anomalies.limit}"
            what = f"to step {step}; training goes on behind batches {first + 1} to {batch + 1} ({count})"
            record(self._events, "rolled_back", what)

    @property
    def past(self) -> Past:
        """What is remembered of the steps before."""
        return self._past

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold (JSON)."""
        return {"past": self._past.to_json(), "skipped_batches": self._passed}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned; checkpoints of before there were incidents have nothing of it."""
        if "past" in state:
            self._past, self._passed = Past.of(state["past"]), state["skipped_batches"]

    def _where(self, step: int) -> str:
        return f"step {step + 1}" + (f" (batch {step + self.skipped + 1})" if self.skipped else "")
