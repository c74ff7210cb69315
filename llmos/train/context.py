"""What a user's own loop is given: who its rank is, and where its metrics and checkpoints go."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llmos.errors import CheckpointError, UsageError
from llmos.files import keep_lines
from llmos.parallel.world import World
from llmos.train import checkpoint, generators, module_state
from llmos.train.checkpoint import Checkpoint
from llmos.train.copies import Copies
from llmos.train.metrics import Metrics
from llmos.train.run import FunctionRun, Result
from llmos.train.saver import Saver
from llmos.train.watchdog import Watchdog

LOG_INTERVAL_S = 5.0
_RECIPE = {"kind": "TrainFunction"}
"""All that two runs of a loop must have in common: the rest is the user's."""

Model = nn.Module | Mapping[str, Tensor]

log = logging.getLogger("llmos.train")


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that verifies: of ``step``, with the ``numbers`` that were saved beside the tensors."""

    step: int
    numbers: Mapping[str, Any]
    path: Path
    world: World

    def load(self, model: Model, optimizer: Optimizer | None = None) -> None:
        """Put ``model`` and ``optimizer`` where they were, however many ranks saved them; random number generators,
        too, on as many ranks. Every rank calls it. Raises CheckpointError for another model, or for want of an
        optimizer."""
        scalars = checkpoint.state(self.path)["optimizer"]
        if optimizer is not None and not scalars:
            raise CheckpointError(f"{self.path} was saved without an optimizer", hint="Load the model alone.")
        found = checkpoint.load(self.path, module_state.tensors(model), self.world)
        if optimizer is not None:
            module_state.load_optimizer(model, optimizer, found.optimizer, scalars)
        generators.restore(found.generators, self.world.device)


class Context:
    """One rank of a gang. torch's default process group is there, also for a gang of one.

    ``name`` and ``steps`` are the job's. Every rank calls :meth:`report`, :meth:`save` and :meth:`latest`, in the same
    order: ranks talk in them. :meth:`should_save` and :meth:`should_stop` say what the last report has found, the same
    on all ranks.
    """

    def __init__(self, run: FunctionRun, world: World) -> None:
        self.name, self.steps, self.world = run.job.name, run.job.steps, world
        self._run, self._policy, self._metrics = run, run.job.checkpoint, dict[str, float]()
        self._step, self._stop, self._late = 0, False, False
        self._reported_s = self._saved_s = time.monotonic()
        self._logged_s = float("-inf")
        self._rows: Metrics | None = None
        self._watchdog: Watchdog | None = None
        self._copies: Copies | None = None
        world.from_first(self._prepare)
        self._saver = Saver(run.job_dirs.checkpoints, self._policy, world, self._copies)

    @property
    def rank(self) -> int:
        """This process among the gang's, from 0."""
        return self.world.rank

    @property
    def size(self) -> int:
        """How many processes the gang has. Another attempt may have another number of them."""
        return self.world.size

    @property
    def device(self) -> torch.device:
        """What this rank computes on."""
        return self.world.device

    def report(self, step: int, **metrics: float | Tensor) -> None:
        """``step`` has ended. Rank 0's ``metrics`` (numbers, or tensors of one) are those of the job.

        Raises UsageError unless steps go up.
        """
        if step <= self._step:
            what = f"report(step={step}) after step {self._step}: expected steps to go up"
            raise UsageError(what, hint="Begin behind `latest().step`, if there is a checkpoint.", param="step")
        if self._rows:
            self._metrics = _numbers(metrics)
            self._rows.write({"step": step, **self._metrics, "time_s": time.time()})
            self._say(step)
        self._step = step
        self._stop, self._late = self.world.from_first(self._wishes)
        self._step_ended()

    def should_save(self) -> bool:
        """Whether a checkpoint of the reported step is due: by ``checkpoint.every_steps`` or ``every``, at the last
        step, and before the job ends."""
        return self._step % self._policy.every_steps == 0 or self._step >= self.steps or self._stop or self._late

    def should_stop(self) -> bool:
        """Whether the job is asked to end: save, and return. It goes on later, perhaps on other nodes."""
        return self._stop

    def save(self, step: int, model: Model, optimizer: Optimizer | None = None, **numbers: Any) -> None:
        """Save a checkpoint, while the loop goes on if ``checkpoint.async`` says so.

        ``numbers`` (JSON) come back from :meth:`latest`; ``validation_loss`` is what ``keep_best`` goes by. Tensors may
        be whole, or DTensors of which this rank has a part. Raises UsageError for what no JSON can hold.
        """
        tensors, scalars = module_state.optimizer_state(model, optimizer) if optimizer is not None else ({}, {})
        state = {"numbers": numbers, "optimizer": scalars, "ranks": self.size}
        state["validation_loss"] = numbers.get("validation_loss")
        try:
            json.dumps(state, allow_nan=True)
        except TypeError as error:
            raise UsageError(f"save() takes numbers and texts beside model and optimizer: {error}") from None
        random = generators.state(self.device)
        self._saver.save(Checkpoint(step, _RECIPE, module_state.tensors(model), tensors, state, random))
        self._saved_s = time.monotonic()
        if self._watchdog:
            self._watchdog.alive()

    def latest(self) -> Saved | None:
        """The newest checkpoint of this job that verifies, whichever attempt saved it; None if there is none.

        Raises CheckpointError when all of them are damaged.
        """
        self._saver.wait()
        path = checkpoint.find_latest(self._run.job_dirs.checkpoints, _RECIPE, self.world)
        if path is None:
            return None
        state = checkpoint.state(path)
        return Saved(int(path.name.rpartition("-")[2]), state["numbers"], path, self.world)

    def result(self) -> Result:
        """How the function has ended. Raises CheckpointError when its last checkpoint could not be written."""
        self._saver.wait()
        yielded = self._stop and self._step < self.steps
        return Result("yielded" if yielded else "succeeded", self._step, self._metrics)

    def close(self) -> None:
        """Let what is being saved come to its end."""
        if self._watchdog:
            self._watchdog.close()
        if self._rows:
            self._rows.close()
        self._saver.close()

    def _prepare(self) -> None:
        """On rank 0: bring back checkpoints that are elsewhere; drop what is said of steps that are done again."""
        directory = self._run.job_dirs.checkpoints
        if self._policy.storage:
            self._copies = Copies(self._policy.storage, directory)
            if not checkpoint.saved(directory):
                self._copies.fetch()
        newest = max((step for step, _ in checkpoint.saved(directory)), default=0)
        keep_lines(self._run.attempt.metrics, lambda row: row["step"] <= newest)
        self._rows = Metrics(self._run.attempt, None)

    def _wishes(self) -> tuple[bool, bool]:
        """On rank 0: whether the job is asked to end, and whether a checkpoint is due by the clock."""
        every_s = self._policy.every
        late = every_s is not None and time.monotonic() - self._saved_s >= every_s
        return self._run.attempt.stop.exists(), late

    def _step_ended(self) -> None:
        """From the first report on, the watchdog knows what a step is."""
        now_s = time.monotonic()
        if self._watchdog is None:
            self._watchdog = Watchdog(self._run.job.watchdog, self.world, self._run.attempt)
        else:
            self._watchdog.step_ended(now_s - self._reported_s)
        self._reported_s = now_s

    def _say(self, step: int) -> None:
        if time.monotonic() - self._logged_s > LOG_INTERVAL_S or step == self.steps:
            shown = ", ".join(f"{name} {value:.5g}" for name, value in self._metrics.items())
            log.info("step %d/%d%s", step, self.steps, f": {shown}" if shown else "")
            self._logged_s = time.monotonic()


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, value in metrics.items():
        try:
            found[name] = float(value.item() if isinstance(value, Tensor) else value)
        except (TypeError, ValueError, RuntimeError):
            what = f"report({name}=…) is of type {type(value).__name__}: expected a number, or a tensor of one"
            raise UsageError(what, param=name) from None
    return found
