"""The state of training on one rank, and the ways it changes: a step, a measurement, a checkpoint, a resume."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmos.errors import TrainingError
from llmos.models import Transformer
from llmos.parallel.gradients import Gradients
from llmos.parallel.state import gather
from llmos.parallel.world import World, others_alive
from llmos.spec import TrainJob
from llmos.train import checkpoint
from llmos.train.checkpoint import Checkpoint
from llmos.train.data import Corpus
from llmos.train.evaluate import Evaluation, evaluate
from llmos.train.optimizer import Optimizer
from llmos.train.precision import LossScale
from llmos.train.sampler import Sampler
from llmos.train.schedule import learning_rate
from llmos.train.start import recipe
from llmos.train.step import inputs_and_targets, rank_mesh, spread, windows

log = logging.getLogger("llmos.train")


class Training:
    """A model on its way through ``job.steps`` steps over ``corpus``; every rank holds one, with its part of the model.

    ``step`` counts finished steps, ``loss`` is the last one's (nats per token, over all ranks), ``train_s`` the time
    all of them took, earlier attempts' included.
    """

    def __init__(self, job: TrainJob, model: Transformer, corpus: Corpus, checkpoints: Path, world: World) -> None:
        """``model`` is taken apart. Raises UsageError when it or the batch cannot be spread over the job's mesh."""
        self.job, self.corpus, self.world, self.config = job, corpus, world, model.config
        self.step, self.loss, self.train_s = 0, math.nan, 0.0
        self._checkpoints, self._saved_step = checkpoints, -1
        self._recipe = recipe(job, corpus, model)
        self.mesh = rank_mesh(job, world)
        self._model = spread(job, model, self.mesh)
        numerics, parameters = self._model.numerics, self._model.parameters
        self.dtype = numerics.dtype
        rounded = numerics.weights if numerics.weights is not torch.float32 and self.mesh.fsdp == 1 else None
        self._optimizer = Optimizer(parameters, job.optimizer, self.mesh.line("dp"), rounded)
        tied, reduction = model.config.tie_embeddings, numerics.reduction
        self._gradients = Gradients(parameters, self.mesh, riders=3, tied=tied, reduction=reduction)
        self._loss_scale = LossScale(used=job.precision == "fp16")
        self._tokens = corpus.tokens("train")
        self._sampler = Sampler(len(self._tokens), job.sequence_length, job.seed)

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
        loss, grad_norm, stops = self._differentiate(stop)
        rate = learning_rate(self.step, job.steps, job.optimizer)
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        self._loss_scale.update(finite)
        if finite:
            self._optimizer.step(rate, self._gradients.local())
        elif not self._loss_scale.used:
            self._refuse(loss, grad_norm)
        self.step, self.loss = self.step + 1, loss
        elapsed_s = time.perf_counter() - began
        self.train_s += elapsed_s
        row = {
            "step": self.step,
            "loss": self.loss,
            "learning_rate": rate,
            "tokens_per_s": self._step_tokens / elapsed_s,
            "tokens": self.tokens,
            "time_s": time.time(),
        }
        return row | ({"grad_norm": grad_norm} if finite else {"skipped": 1}), stops  # JSON knows no infinity

    def evaluate(self) -> Evaluation:
        """The cost of the held-out text, with the weights as they are."""
        tokens, size = self.corpus.tokens("validation"), self.corpus.validation_bytes
        return evaluate(self._model, tokens, size, self.job.sequence_length)

    @property
    def weights(self) -> dict[str, Tensor]:
        """This rank's part of the weights, fp32, by their names in the whole model.

        A Tensor is whole, a DTensor spread over fsdp and tp; pipeline ranks have the weights of their stages.
        """
        return self._optimizer.weights

    @property
    def optimizer_state(self) -> dict[str, Tensor]:
        """What the optimizer remembers of :attr:`weights`, as ``<weight>/<what>``."""
        return self._optimizer.state()

    @property
    def counters(self) -> dict[str, Any]:
        """What else a resumed run needs (JSON)."""
        scale = self._loss_scale
        return {"loss": self.loss, "train_s": self.train_s, "loss_scale": [scale.value, scale.good_steps]}

    def whole_model(self) -> Transformer:
        """The model put together, on rank 0; elsewhere only a shape. All ranks must call it."""
        tensors = gather(self.weights, self.mesh)
        with torch.device("meta"):
            model = Transformer(self.config)
        if self.world.first:
            model.load_state_dict(tensors, assign=True)
        return model

    def save(self) -> None:
        """Rank 0 writes a checkpoint, unless this step has one. Raises CheckpointError on every rank when it cannot."""
        if self._saved_step == self.step:
            return
        weights, state = gather(self.weights, self.mesh), gather(self.optimizer_state, self.mesh)
        self.world.from_first(lambda: self._save(weights, state))
        self._saved_step = self.step

    def resume(self) -> None:
        """Continue from the newest checkpoint that verifies, if there is any. Raises CheckpointError."""
        found = self.world.from_first(self._find)
        if found is None:
            return
        latest = checkpoint.load(Path(found), torch.device("cpu"))
        self._optimizer.load(latest.model, latest.optimizer)
        self.step = self._saved_step = latest.step
        self.loss, self.train_s = latest.state["loss"], latest.state["train_s"]
        self._loss_scale.value, self._loss_scale.good_steps = latest.state["loss_scale"]
        if self.world.first:
            log.info("resumed from %s", found)

    def _differentiate(self, stop: bool) -> tuple[float, float, bool]:
        """The step's loss, the norm of its gradient before that is clipped, and whether any rank said ``stop``.

        The loss is scaled by the tokens of a full step before, and by those that counted after the backward pass: their
        number over all ranks travels with the gradients.
        """
        inputs, targets = inputs_and_targets(self._samples())
        self._gradients.zero()
        self._model.set_scale(self._loss_scale.value / self._step_tokens)
        with others_alive():
            loss = self._model.passes.accumulate(inputs, targets)
        counted = (targets >= 0).sum()
        mine = [loss, counted] if self.mesh.reports else [0.0, 0.0]
        (loss_sum, tokens, stops), norm = self._gradients.sum([*mine, float(stop)])
        factor = self._step_tokens / max(1.0, tokens) / self._loss_scale.value
        norm *= factor
        self._gradients.scale(factor * min(1.0, self.job.optimizer.grad_clip / (norm + 1e-6)))
        return loss_sum * factor, norm, stops > 0

    def _samples(self) -> Tensor:
        """This rank's share of the step's sequences, [B, T+1]."""
        first, mine = self.step * self.job.batch_size, self.mesh.share(self.job.batch_size)
        offsets = self._sampler.offsets(first + mine.start, first + mine.stop)
        return windows(self._tokens, offsets, self.job.sequence_length).to(self.world.device)

    def _refuse(self, loss: float, grad_norm: float) -> None:
        raise TrainingError(
            f"step {self.step + 1}: the loss is {loss}, the gradient's norm {grad_norm}: expected finite numbers",
            hint="Lower optimizer.learning_rate, lengthen warmup_steps, or use precision: fp32.",
        )

    def _find(self) -> str | None:
        found = checkpoint.find_latest(self._checkpoints, self._recipe)
        return str(found) if found else None

    def _save(self, weights: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
        state = {**self.counters, "ranks": self.world.size}
        snapshot = Checkpoint(self.step, self._recipe, weights, optimizer, state)
        path = checkpoint.save(self._checkpoints, snapshot, self.job.checkpoint.keep)
        log.info("saved %s", path)
