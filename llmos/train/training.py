"""The state of training on one rank, and the ways it changes: a step, a measurement, a checkpoint, a resume."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import torch

from llmos.errors import TrainingError, UsageError
from llmos.models import Transformer
from llmos.parallel.data import GradientBuffer
from llmos.parallel.world import World
from llmos.spec import TrainJob
from llmos.train import checkpoint, generators
from llmos.train.checkpoint import Checkpoint
from llmos.train.copies import Copies
from llmos.train.data import Corpus
from llmos.train.evaluate import Evaluation, evaluate
from llmos.train.feed import Feed
from llmos.train.lora import trainable
from llmos.train.optimizer import Optimizer
from llmos.train.rows import held_out_rows
from llmos.train.saver import Saver
from llmos.train.schedule import learning_rate
from llmos.train.start import recipe
from llmos.train.step import accumulate, compute_dtype

log = logging.getLogger("llmos.train")


class Training:
    """``model`` on its way through ``job.steps`` steps over ``corpus``; every rank holds one, in the same state.

    ``step`` counts finished steps, ``loss`` is the last one's (nats per token, over all ranks), ``train_s`` the time
    all of them took, earlier attempts' included.
    """

    def __init__(
        self,
        job: TrainJob,
        model: Transformer,
        corpus: Corpus,
        checkpoints: Path,
        world: World,
        samples: Path | None = None,
    ) -> None:
        """``samples`` is a file for this rank's samples of each step to be written down in."""
        if job.batch_size < world.size:
            raise UsageError(f"`batch_size: {job.batch_size}` is less than the {world.size} ranks", param="batch_size")
        self.job, self.model, self.corpus, self.world = job, model, corpus, world
        self.dtype = compute_dtype(job.precision, world.device)
        self.step, self.loss, self.train_s = 0, math.nan, 0.0
        self._checkpoints, self._saved_step = checkpoints, -1
        self._copies: Copies | None = None
        world.from_first(self._open_copies)
        self._saver = Saver(checkpoints, job.checkpoint, world, self._copies)
        self._recipe = recipe(job, corpus, model)
        self._optimizer = Optimizer(model, job.optimizer, world)
        self._gradients = GradientBuffer(model, world, riders=3)
        report = log.info if world.first else log.debug
        self._feed = Feed(job, corpus, world.share(job.batch_size), world.device, report, samples)
        self._held_out = held_out_rows(corpus, job.sequence_length, report)

    @property
    def tokens(self) -> int:
        """Tokens trained on so far, over all ranks."""
        return self.step * self._step_tokens

    @property
    def _step_tokens(self) -> int:
        return self.job.batch_size * self.job.sequence_length

    def advance(self, stop: bool = False) -> tuple[dict[str, float], bool]:
        """Do one step. Returns its metrics, and whether any rank said ``stop``.

        Raises TrainingError when the loss or the gradient is not a finite number; the weights are then unchanged.
        """
        job, began = self.job, time.perf_counter()
        self._gradients.zero()
        batch, data_wait_s = self._feed.take(self.step)
        loss = accumulate(self.model, batch, job.micro_batch_size, self.dtype, 1 / self._step_tokens)
        loss_over_ranks, counted, stops = self._gradients.sum([loss, batch.counted, float(stop)])
        loss_over_ranks *= self._scale_to(counted)
        grad_norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), job.optimizer.grad_clip))
        self._check_finite(loss_over_ranks, grad_norm)
        rate = learning_rate(self.step, job.steps, job.optimizer)
        self._optimizer.step(rate)
        self.step, self.loss = self.step + 1, loss_over_ranks
        elapsed_s = time.perf_counter() - began
        self.train_s += elapsed_s
        row = {
            "step": self.step,
            "loss": self.loss,
            "learning_rate": rate,
            "grad_norm": grad_norm,
            "tokens_per_s": self._step_tokens / elapsed_s,
            "tokens": self.tokens,
            "data_wait_s": data_wait_s,
            "time_s": time.time(),
        }
        return row, stops > 0

    def evaluate(self) -> Evaluation:
        """The cost of the held-out text, with the weights as they are."""
        job = self.job
        rows, length, mask = self._held_out, job.sequence_length, job.masks_documents
        return evaluate(self.model, self.corpus, rows, length, mask, self.dtype, self.world)

    def save(self, validation_loss: float | None = None) -> float:
        """Begin to save a checkpoint, unless this step has one. Returns how long the step waited for it, in seconds.

        ``validation_loss`` is that of the weights as they are, if it was measured. Every rank calls this.
        """
        if self._saved_step == self.step:
            return 0.0
        state = {
            "loss": self.loss,
            "validation_loss": validation_loss,
            "train_s": self.train_s,
            "samples": self.step * self.job.batch_size,
            "ranks": self.world.size,
        }
        model, random = trainable(self.model), generators.state(self.world.device)
        self._saved_step = self.step
        return self._saver.save(Checkpoint(self.step, self._recipe, model, self._optimizer.state(), state, random))

    def wait_saved(self) -> None:
        """Wait until the last checkpoint is on disk. Raises CheckpointError on every rank when it cannot be written."""
        self._saver.wait()

    def close(self) -> None:
        """Let what is being saved come to its end. Call it on every rank, however training ended."""
        self._saver.close()

    def resume(self) -> None:
        """Continue from the newest checkpoint that verifies, if there is any. Raises CheckpointError."""
        self.world.from_first(self._fetch)
        found = checkpoint.find_latest(self._checkpoints, self._recipe, self.world)
        if found is None:
            return
        latest = checkpoint.load(found, trainable(self.model), self.world)
        self._optimizer.load_state(latest.optimizer)
        generators.restore(latest.generators, self.world.device)
        self.step = self._saved_step = latest.step
        self.loss, self.train_s = latest.state["loss"], latest.state["train_s"]
        if self.world.first:
            log.info("resumed from %s", found)

    def _scale_to(self, counted: float) -> float:
        """From a mean over all of a step's tokens to one over those that ``counted``; the gradients are scaled."""
        factor = self._step_tokens / max(1.0, counted)
        if factor != 1:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        return factor

    def _check_finite(self, loss: float, grad_norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise TrainingError(
                f"step {self.step + 1}: the loss is {loss}, the gradient's norm {grad_norm}: expected finite numbers",
                hint="Lower optimizer.learning_rate, lengthen warmup_steps, or use precision: fp32.",
            )

    def _open_copies(self) -> None:
        if self.job.checkpoint.storage:
            self._copies = Copies(self.job.checkpoint.storage, self._checkpoints)

    def _fetch(self) -> None:
        if self._copies and not checkpoint.saved(self._checkpoints):
            self._copies.fetch()
