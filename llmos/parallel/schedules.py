"""torch's pipeline schedules, by their names in a spec, and its stages, which tell when gradients are complete.

A module of its own, because torch's loads its compiler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.distributed import pipelining
from torch.distributed.pipelining import PipelineStage

from llmos.parallel.meter import part
from llmos.parallel.stage import Stage

if TYPE_CHECKING:
    from llmos.parallel.pipeline import Listener

SCHEDULES: dict[str, Any] = {
    "gpipe": pipelining.ScheduleGPipe,
    "1f1b": pipelining.Schedule1F1B,
    "interleaved": pipelining.ScheduleInterleaved1F1B,
    "zero_bubble": pipelining.ScheduleInterleavedZeroBubble,
}


class TorchStage(PipelineStage):
    """A stage of torch's that says when it computes, when its last backward pass begins and when its
    gradients are complete.

    A backward pass that is split adds gradients in its second half, and not all as autograd does: no hooks are called.
    """

    def __init__(self, stage: Stage, listener: Listener | None, **options: Any) -> None:
        super().__init__(stage, **options)
        self._stage, self._listener = stage, listener

    def forward_one_chunk(self, *args: Any, **options: Any) -> Any:
        with part("forward"):
            return super().forward_one_chunk(*args, **options)

    def backward_one_chunk(self, *args: Any, **options: Any) -> None:
        listener = self._listener if options["last_backward"] else None
        if listener:
            listener.last_pass(self._stage)
        with part("backward"):
            super().backward_one_chunk(*args, **options)
        if listener:
            listener.complete(self._stage)

    def backward_weight_one_chunk(self, *args: Any, **options: Any) -> None:
        with part("backward"):
            super().backward_weight_one_chunk(*args, **options)
        if self._listener and options["last_backward"]:
            self._listener.complete(self._stage)
