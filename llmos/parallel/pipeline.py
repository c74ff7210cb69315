"""Pipeline parallelism: each pp rank holds some stages; micro-batches flow through them, and gradients flow back.

Schedules of torch.distributed.pipelining, for p ranks and m micro-batches (F, B: time of a forward, a backward pass):

- ``gpipe``: all forward, then all backward (arXiv 1811.06965); idle (p - 1) / (m + p - 1) of the time.
- ``1f1b``: one forward, one backward in turns (PipeDream-flush, arXiv 2104.04473): as idle, but at most p micro-batches
  are in memory instead of m.
- ``interleaved``: v stages a rank, v > 1 (same paper): idle (p - 1) / (v · m + p - 1).
- ``zero_bubble``: the backward pass is split into that of activations, which others wait for, and that of weights,
  which fills the gaps (ZB-H1, arXiv 2401.10241).

Stage s is on rank s mod p. The loss is a sum, and gradients are sums over micro-batches (``scale_grads=False``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from llmos.parallel.mesh import RankMesh
from llmos.parallel.meter import part
from llmos.parallel.sharded import sum_copies
from llmos.parallel.stage import Stage

_ONE_STAGE = ("gpipe", "1f1b")


class Listener(Protocol):
    """Told when gradients become complete, so that their sum over ranks can begin beside what is left of a step."""

    def last_pass(self, stage: Stage) -> None:
        """The backward pass that begins now is the step's last one through ``stage``."""

    def complete(self, stage: Stage) -> None:
        """All gradients of ``stage`` in this step are there."""


class Pipeline:
    """Runs ``stages``, this rank's, on micro-batches of ``rows`` sequences of ``length`` tokens.

    The number of micro-batches must be that of the first step in every step.
    """

    def __init__(self, stages: Sequence[Stage], mesh: RankMesh, schedule: str, rows: int, length: int) -> None:
        self._stages, self._mesh, self._schedule_name = list(stages), mesh, schedule
        self._rows, self._length = rows, length
        self._schedule: Any = None
        self._schedule_parts = 0
        self.listener: Listener | None = None

    def accumulate(self, inputs_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Forward and backward passes; gradients add to ``.grad``. Returns the loss, on other than the last rank 0."""
        parts = len(inputs_BT) // self._rows
        if parts != self._schedule_parts:
            self._schedule, self._schedule_parts = self._scheduled(parts), parts
        losses: list[Tensor] = []
        head = (inputs_BT,) if self._mesh.place["pp"] == 0 else ()
        told = {"targets_BT": targets_BT} | ({} if documents_BT is None else {"documents_BT": documents_BT})
        with part("pipeline"):
            self._schedule.step(*head, target=targets_BT, losses=losses, return_outputs=False, **told)
        return torch.stack(losses).sum().detach() if losses else inputs_BT.new_zeros((), dtype=torch.float32)

    @torch.no_grad()
    def evaluate(self, inputs_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """The loss of one micro-batch, forward only; on other than the last rank 0."""
        line, ranks = self._mesh.line("pp"), self._mesh.ranks("pp")
        x: Tensor = inputs_BT
        for stage in self._stages:
            if not stage.first:
                x = torch.empty(self._hidden_shape(stage), device=x.device)
                dist.recv(x, src=ranks[(line.place - 1) % line.size], group=line.group)
            x = stage(x, targets_BT, documents_BT)
            if stage.last:
                break
            dist.send(x, dst=ranks[(line.place + 1) % line.size], group=line.group)
        else:
            return inputs_BT.new_zeros((), dtype=torch.float32)
        return x

    def _scheduled(self, parts: int) -> Any:
        """The schedule for ``parts`` micro-batches. Shapes are told, not tried out: a trial would leave gradients."""
        from llmos.parallel import schedules  # loads torch's compiler: half a second that other meshes save

        line = self._mesh.line("pp")
        torch_stages = [
            schedules.TorchStage(
                stage,
                listener=self.listener,
                stage_index=i * line.size + line.place,
                num_stages=len(self._stages) * line.size,
                device=self._mesh.world.device,
                input_args=self._input(stage),
                output_args=self._output(stage),
                group=line.group or dist.group.WORLD,
            )
            for i, stage in enumerate(self._stages)
        ]
        one = self._schedule_name in _ONE_STAGE
        made = schedules.SCHEDULES[self._schedule_name]
        return made(torch_stages[0] if one else torch_stages, parts, loss_fn=_loss, scale_grads=False)

    def _input(self, stage: Stage) -> Tensor:
        if stage.first:
            return torch.empty(self._rows, self._length, dtype=torch.int64, device="meta")
        return torch.empty(self._hidden_shape(stage), device="meta", requires_grad=True)

    def _output(self, stage: Stage) -> Tensor:
        shape = () if stage.last else self._hidden_shape(stage)
        return torch.empty(shape, device="meta", requires_grad=True)

    def _hidden_shape(self, stage: Stage) -> tuple[int, int, int]:
        return self._rows, self._length // self._mesh.tp, stage.config.hidden_size


class Direct:
    """Runs ``stage``, the whole model, on micro-batches of at most ``rows`` sequences."""

    def __init__(self, stage: Stage, rows: int) -> None:
        self._stage, self._rows = stage, rows
        self.listener: Listener | None = None

    def accumulate(self, inputs_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Forward and backward passes; gradients add to ``.grad``. Returns the loss."""
        total = torch.zeros((), device=inputs_BT.device)
        for start in range(0, len(inputs_BT), self._rows):
            rows = slice(start, start + self._rows)
            documents = None if documents_BT is None else documents_BT[rows]
            last = rows.stop >= len(inputs_BT)
            sum_copies(self._stage, last)
            if self.listener and last:
                self.listener.last_pass(self._stage)
            with part("forward"):
                loss = self._stage(inputs_BT[rows], targets_BT[rows], documents)
            with part("backward"):
                loss.backward()
            total += loss.detach()
        return total

    @torch.no_grad()
    def evaluate(self, inputs_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """The loss, forward only."""
        result: Tensor = self._stage(inputs_BT, targets_BT, documents_BT)
        return result


def _loss(loss: Tensor, _: Tensor) -> Tensor:
    return loss
