"""The state of training on one rank, and the ways it changes: a step, a measurement, a checkpoint, a resume."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from llmos.errors import CheckpointError
from llmos.layout import AttemptDirs
from llmos.models import Transformer
from llmos.parallel.gradients import Gradients
from llmos.parallel.meter import part
from llmos.parallel.state import gather
from llmos.parallel.world import World, others_alive
from llmos.spec import TrainJob
from llmos.train import checkpoint, generators
from llmos.train.anomalies import Verdict
from llmos.train.batch import Batch
from llmos.train.checkpoint import Checkpoint
from llmos.train.copies import Copies
from llmos.train.data import Corpus
from llmos.train.evaluate import Evaluation, evaluate
from llmos.train.feed import Feed
from llmos.train.incidents import Incidents
from llmos.train.lora import add_adapters
from llmos.train.micro_batch import settled
from llmos.train.optimizer import Optimizer
from llmos.train.precision import LossScale
from llmos.train.rows import held_out_rows
from llmos.train.saver import Saver
from llmos.train.schedule import learning_rate
from llmos.train.start import recipe
from llmos.train.step import rank_mesh, spread
from llmos.train.telemetry import Telemetry, summary

log = logging.getLogger("llmos.train")


class Training:
    """``model`` on its way through ``job.steps`` steps over ``corpus``; every rank holds its part, in the same state.

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
        attempt: AttemptDirs,
    ) -> None:
        """``model`` is taken apart. What happens, and what is read if the job says so, is written down in ``attempt``.

        Raises UsageError when the model or the batch cannot be spread over the job's mesh.
        """
        self.job, self.corpus, self.world, self.config = job, corpus, world, model.config
        self.step, self.loss, self.train_s = 0, math.nan, 0.0
        self._checkpoints, self._saved_step, self._loaded_step = checkpoints, -1, -1
        self._copies: Copies | None = None
        world.from_first(self._open_copies)
        self._saver = Saver(checkpoints, job.checkpoint, world, self._copies)
        self._recipe = recipe(job, corpus, model)
        self.mesh = rank_mesh(job, world)
        self._model = spread(settled(job, model.config, self.mesh), model, self.mesh)
        numerics, parameters = self._model.numerics, self._model.parameters
        self.dtype = numerics.dtype
        rounded = numerics.weights if numerics.weights is not torch.float32 and self.mesh.fsdp == 1 else None
        self._optimizer = Optimizer(parameters, job.optimizer, self.mesh.line("dp"), rounded)
        tied, reduction = model.config.tie_embeddings, numerics.reduction
        self.telemetry = Telemetry(world)
        riders = 3 + self.telemetry.riders
        self._gradients = Gradients(parameters, self.mesh, riders=riders, tied=tied, reduction=reduction)
        self._model.passes.listener = self._gradients
        self._loss_scale = LossScale(used=job.precision == "fp16")
        report = log.info if world.first else log.debug
        samples = attempt.samples(world.rank) if job.data.log_samples else None
        self._feed = Feed(job, corpus, self.mesh.share(job.batch_size), world.device, report, samples)
        self._incidents = Incidents(job, self._feed, attempt.events if world.first else None)
        self._held_out = held_out_rows(corpus, job.sequence_length, report)
        self.telemetry.open()

    @property
    def tokens(self) -> int:
        """Tokens trained on so far, over all ranks."""
        return self.step * self._step_tokens

    @property
    def _step_tokens(self) -> int:
        return self.job.batch_size * self.job.sequence_length

    def advance(self, stop: bool = False) -> tuple[dict[str, float], bool]:
        """Do one step. Returns its metrics, and whether any rank said ``stop``.

        What goes wrong in it is dealt with as ``job.anomalies`` says; after a roll-back this is the step behind the
        checkpoint. Raises DivergenceError when training must not go on; the weights are then as before the step.
        """
        job, began = self.job, time.perf_counter()
        self.telemetry.begin()
        with part("data"):
            batch, self.telemetry.data_wait_s = self._feed.take(self.step, self._incidents.skipped)
        loss, grad_norm, stops = self._differentiate(batch, stop)
        rate = learning_rate(self.step, job.steps, job.optimizer)
        verdict = self._judge(loss, grad_norm)
        if verdict == "roll_back":
            self._roll_back()
            return self.advance(stop)
        if verdict == "go_on":
            with part("optimizer"):
                self._optimizer.step(rate, self._gradients.local())
        self.step, self.loss = self.step + 1, loss if math.isfinite(loss) else self.loss
        self.telemetry.end()
        elapsed_s = time.perf_counter() - began
        self.train_s += elapsed_s
        row = {
            "step": self.step,
            "loss": loss,
            "learning_rate": rate,
            "tokens_per_s": self._step_tokens / elapsed_s,
            "step_s": elapsed_s,
            "tokens": self.tokens,
            "time_s": time.time(),
            **summary(self.telemetry.ranks),
        }
        if self._incidents.skipped:
            row["skipped_batches"] = self._incidents.skipped
        return row | ({"grad_norm": grad_norm} if verdict == "go_on" else {"skipped": 1}), stops

    def evaluate(self, alive: Callable[[], None] = lambda: None) -> Evaluation:
        """The cost of the held-out text, with the weights as they are. ``alive`` is called for each micro-batch."""
        job = self.job
        return evaluate(self._model, self.corpus, self._held_out, job.sequence_length, job.masks_documents, alive)

    @property
    def weights(self) -> dict[str, Tensor]:
        """This rank's part of what is trained, fp32, by the names in the whole model.

        A Tensor is whole, a DTensor spread over fsdp and tp; pipeline ranks have the weights of their stages.
        """
        return self._optimizer.weights

    @property
    def optimizer_state(self) -> dict[str, Tensor]:
        """What the optimizer remembers of :attr:`weights`, as ``<weight>/<what>``."""
        return self._optimizer.state()

    def whole_model(self) -> Transformer:
        """The model put together, adapters beside it, on rank 0; elsewhere only a shape. All ranks must call it."""
        tensors = gather({**self._model.frozen, **self.weights}, self.mesh)
        with torch.device("meta"):
            model = Transformer(self.config)
            if self.job.lora:
                add_adapters(model, self.job.lora, self.job.seed)
        if self.world.first:
            model.load_state_dict(tensors, assign=True)
        return model

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
            "loss_scale": [self._loss_scale.value, self._loss_scale.good_steps],
            "samples": (self.step + self._incidents.skipped) * self.job.batch_size,
            **self._incidents.state(),
            "ranks": self.world.size,
        }
        random = generators.state(self.world.device)
        self._saved_step = self.step
        return self._saver.save(Checkpoint(self.step, self._recipe, self.weights, self.optimizer_state, state, random))

    def wait_saved(self) -> None:
        """Wait until the last checkpoint is on disk. Raises CheckpointError on every rank when it cannot be written."""
        self._saver.wait()

    def close(self) -> None:
        """Let what is being saved come to its end. Call it on every rank, however training ended."""
        self.telemetry.close()
        self._saver.close()

    def resume(self) -> None:
        """Continue from the newest checkpoint that verifies, if there is any. Raises CheckpointError.

        If there is none, and the job may be rolled back, its very beginning is saved.
        """
        self.world.from_first(self._fetch)
        found = checkpoint.find_latest(self._checkpoints, self._recipe, self.world)
        if found is not None:
            self._load(found)
            if self.world.first:
                log.info("resumed from %s", found)
        elif "roll_back" in (self.job.anomalies.nan, self.job.anomalies.spike):
            self.save()

    def _load(self, path: Path) -> None:
        latest = checkpoint.load(path, self.weights, self.world)
        self._optimizer.load_state(latest.optimizer)
        generators.restore(latest.generators, self.world.device)
        self.step = self._saved_step = self._loaded_step = latest.step
        self.loss, self.train_s = latest.state["loss"], latest.state["train_s"]
        self._loss_scale.value, self._loss_scale.good_steps = latest.state["loss_scale"]
        self._incidents.load(latest.state)

    def _differentiate(self, batch: Batch, stop: bool) -> tuple[float, float, bool]:
        """The step's loss, the norm of its gradient before that is clipped, and whether any rank said ``stop``.

        The loss is scaled by the tokens of a full step before, and by those that counted after the backward pass: their
        number over all ranks travels with the gradients.
        """
        self._gradients.zero()
        self._model.set_scale(self._loss_scale.value / self._step_tokens)
        with others_alive():
            loss = self._model.passes.accumulate(batch.tokens_BT, batch.targets_BT, batch.documents_BT)
        mine = [loss, batch.counted] if self.mesh.reports else [0.0, 0.0]
        told = [*mine, float(stop), *self.telemetry.outgoing()]
        (loss_sum, tokens, stops, *measured), norm = self._gradients.sum(told)
        self.telemetry.incoming(measured)
        factor = self._step_tokens / max(1.0, tokens) / self._loss_scale.value
        norm *= factor
        self._gradients.scale(factor * min(1.0, self.job.optimizer.grad_clip / (norm + 1e-6)))
        return loss_sum * factor, norm, stops > 0

    def _judge(self, loss: float, grad_norm: float) -> Verdict:
        """What to do about the step whose loss and gradient these are: the same on every rank. Raises DivergenceError.

        Under loss scaling, gradients beyond fp16's range are no accident: the step is skipped, the scale lowered.
        """
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        self._loss_scale.update(finite)
        if self._loss_scale.used and not finite:
            return "skip"
        return self._incidents.judge(self.step, loss, grad_norm)

    def _roll_back(self) -> None:
        """Return to the newest checkpoint that verifies, and move past all batches from there to this step's.

        To move past the last one only would be no more than a skipped step: training would repeat itself up to there. A
        checkpoint from which not one step has come is no better than where training is, so an older one is taken.
        """
        with suppress(CheckpointError):
            self.wait_saved()
        batch, past = self.step + self._incidents.skipped, self._incidents.past
        before = self.step if self.step == self._loaded_step else self.step + 1
        found = checkpoint.find_latest(self._checkpoints, self._recipe, self.world, before)
        if found is None:
            raise self._incidents.fatal(self.step, "this step went wrong: no checkpoint is left to roll back to")
        self._load(found)
        self._incidents.rolled_back(self.step, batch, past)

    def _open_copies(self) -> None:
        if self.job.checkpoint.storage:
            self._copies = Copies(self.job.checkpoint.storage, self._checkpoints)

    def _fetch(self) -> None:
        if self._copies and not checkpoint.saved(self._checkpoints):
            self._copies.fetch()
