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
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate

from llmos.parallel.mesh import RankMesh

_ALIGNMENT = 16
"""Elements: gradients begin on 64-byte boundaries, where vector kernels are fastest and give the same sums each run."""


class GradientBuffer:
    """Owns the gradients of ``parameters``. Autograd adds to them in place; :meth:`sum` ends a step's backward.

    Micro-batches need no communication: call ``backward`` as often as needed, then :meth:`sum` once. Losses must be
    scaled so that their sum over micro-batches and ranks is the loss of the step. Gradients are fp32 whatever the type
    of the parameters. Under tensor parallelism, gradients of parameters that every tp rank holds whole (norms) are
    summands until then; they lie at the end of the buffer.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        mesh: RankMesh,
        riders: int = 0,
        reduction: torch.dtype = torch.float32,
    ) -> None:
        """``riders``: how many float32 numbers travel with the gradients, which are summed in type ``reduction``."""
        self._parameters, self._mesh, self._riders, self._reduction = parameters, mesh, riders, reduction
        order = sorted(range(len(parameters)), key=lambda i: _copied(parameters[i]))
        sizes = [-(-_size(parameters[i]) // _ALIGNMENT) * _ALIGNMENT for i in order]
        self._flat = torch.zeros(sum(sizes) + riders, device=mesh.world.device)
        copied = sum(size for i, size in zip(order, sizes, strict=True) if _copied(parameters[i]))
        self._summands = self._flat[sum(sizes) - copied : sum(sizes)]
        self.local = [self._flat] * len(parameters)
        """This rank's part of each gradient."""
        for i, part in zip(order, self._flat[: sum(sizes)].split(sizes), strict=True):
            self.local[i] = part[: _size(parameters[i])].view(_shape(parameters[i]))
        self._attached = [_attached(p, part) for p, part in zip(parameters, self.local, strict=True)]
        self.zero()

    def zero(self) -> None:
        """Forget the last step's gradients."""
        self._flat.zero_()
        for parameter, gradient in zip(self._parameters, self._attached, strict=True):
            parameter.grad_dtype = torch.float32
            parameter.grad = gradient

    def sum(self, riders: Sequence[float | Tensor] = ()) -> list[float]:
        """Sum all gradients, and ``riders``, over the data-parallel ranks. Returns the sums of ``riders``."""
        tail = self._flat[self._flat.numel() - self._riders :]
        for i, rider in enumerate(riders):
            tail[i] = rider
        if self._summands.numel():
            self._mesh.line("tp").sum(self._summands)
        if self._reduction is torch.float32:
            self._mesh.line("dp").sum(self._flat)
        else:
            gradients = self._flat[: self._flat.numel() - self._riders]
            gradients.copy_(self._mesh.line("dp").sum(gradients.to(self._reduction)))
            self._mesh.line("dp").sum(tail)
        return [float(rider) for rider in tail]


def _copied(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, DTensor) and all(isinstance(p, Replicate) for p in parameter.placements)


def _shape(parameter: nn.Parameter) -> torch.Size:
    return parameter.to_local().shape if isinstance(parameter, DTensor) else parameter.shape


def _size(parameter: nn.Parameter) -> int:
    return _shape(parameter).numel()


def _attached(parameter: nn.Parameter, part: Tensor) -> Tensor:
    """``part`` as the gradient of ``parameter``."""
    if not isinstance(parameter, DTensor):
        return part
    placements: Sequence[Placement] = [Partial()] if _copied(parameter) else parameter.placements
    mesh, shape = parameter.device_mesh, parameter.shape
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=parameter.stride())
