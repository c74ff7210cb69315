"""Data parallelism: every rank holds the whole model and a share of the batch; gradients are summed once a step.

All gradients lie in one buffer, so the sum over ranks is a single collective with no copies, and numbers that ranks
must agree on each step (the loss, whether to stop) ride along for free.

Measured for a model of 5.5 M parameters (steps of 8,192 tokens) on two gloo ranks of one core each, step by step
in turns: 660 to 664 ms a step, 657 to 665 with DistributedDataParallel, 663 with sums that overlap the backward pass;
the sum takes 24 ms, and in bf16, converted back and forth, no less.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llmos.parallel.world import World

_ALIGNMENT = 16
"""Elements: gradients begin on 64-byte boundaries, where vector kernels are fastest and give the same sums each run."""


class GradientBuffer:
    """Owns the gradients of ``model``'s parameters. Autograd adds to them in place; :meth:`sum` ends a step's backward.

    Micro-batches need no communication: call ``backward`` as often as needed, then :meth:`sum` once. Losses must be
    scaled so that their sum over micro-batches and ranks is the loss of the step.
    """

    def __init__(self, model: nn.Module, world: World, riders: int = 0) -> None:
        """``riders``: how many float32 numbers travel with the gradients."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        sizes = [-(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT for parameter in parameters]
        self._world, self._riders = world, riders
        self._flat = torch.zeros(sum(sizes) + riders, device=world.device)
        for parameter, part in zip(parameters, self._flat[: sum(sizes)].split(sizes), strict=True):
            parameter.grad = part[: parameter.numel()].view_as(parameter)

    def zero(self) -> None:
        """Forget the last step's gradients."""
        self._flat.zero_()

    def sum(self, riders: Sequence[float | Tensor] = ()) -> list[float]:
        """Sum all gradients, and ``riders``, over the ranks. Returns the sums of ``riders``."""
        tail = self._flat[self._flat.numel() - self._riders :]
        for i, rider in enumerate(riders):
            tail[i] = rider
        self._world.sum(self._flat)
        return [float(rider) for rider in tail]
