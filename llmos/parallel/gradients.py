"""Gradients of a step, however the mesh splits the parameters: summed over the ranks, measured, clipped.

The convention is the sum: the step's loss is J = Σᵢ Jᵢ over micro-batches and ranks, each Jᵢ the *summed* loss of its
tokens times one factor that all ranks share (1 / the tokens of the step), so the gradient of J is Σᵢ ∇Jᵢ and nothing is
ever divided by a number of ranks or micro-batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from llmos.parallel.data import GradientBuffer
from llmos.parallel.mesh import RankMesh
from llmos.parallel.meter import counted_as
from llmos.parallel.stage import Stage
from llmos.parallel.world import others_alive

TIED = "model.embed_tokens.weight"
"""The parameter that the first and the last stage of a pipeline both hold when embeddings are tied."""


class Gradients:
    """The gradients of this rank's ``parameters`` (by name): where backward adds to them, and what ends a step.

    ``riders`` numbers travel with them, for all that ranks must agree on each step. ``tied``: TIED is at both ends.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        mesh: RankMesh,
        riders: int,
        *,
        tied: bool = False,
        reduction: torch.dtype = torch.float32,
    ) -> None:
        self._mesh, self._parameters = mesh, dict(parameters)
        self._tied = TIED if tied and mesh.pp > 1 and TIED in parameters else None
        self._buffer = None
        if mesh.fsdp == 1:
            self._buffer = GradientBuffer(list(parameters.values()), mesh, riders, reduction)
        shares = [self._share(name, parameter) for name, parameter in parameters.items()]
        self._shares = torch.tensor(shares, dtype=torch.float64, device=mesh.world.device)

    def zero(self) -> None:
        """Forget the last step's gradients."""
        if self._buffer:
            self._buffer.zero()
        else:
            for parameter in self._parameters.values():
                parameter.grad = None

    def last_pass(self, stage: Stage) -> None:
        """The backward pass that begins now is the step's last one through ``stage``: sums may begin beside it."""
        if self._buffer:
            self._buffer.last_pass(stage.parameters())

    def complete(self, stage: Stage) -> None:
        """All gradients of ``stage`` in this step are there."""
        if self._buffer:
            self._buffer.complete(stage.parameters())

    def local(self) -> list[Tensor]:
        """This rank's part of each gradient, in the order of the parameters."""
        return self._buffer.local if self._buffer else [_local(p.grad) for p in self._parameters.values()]

    def sum(self, riders: Sequence[float | Tensor]) -> tuple[list[float], float]:
        """Sum the gradients and ``riders`` over the ranks. Returns the riders' sums and the norm of all gradients."""
        if self._buffer:
            summed = self._buffer.sum(riders)
            if self._mesh.only_dp:
                return summed, float(torch.linalg.vector_norm(self._norms()))
        if self._tied:
            self._add_other_end(_local(self._parameters[self._tied].grad))
        square = float((self._norms().double().square() * self._shares).sum())
        square, *summed = self._mesh.world.total([square, *map(float, riders)])
        return summed, square**0.5

    def scale(self, factor: float) -> None:
        """Multiply all gradients by ``factor``."""
        if factor != 1.0:
            torch._foreach_mul_(self.local(), factor)

    def _norms(self) -> Tensor:
        return torch.stack(torch._foreach_norm(self.local()))

    def _share(self, name: str, parameter: nn.Parameter) -> float:
        """1 / the number of ranks that hold the same part of ``parameter``: their squares are summed over all ranks."""
        holders = self._mesh.dp if self._buffer else 1
        if isinstance(parameter, DTensor):
            for size, placement in zip(parameter.device_mesh.shape, parameter.placements, strict=True):
                holders *= size if isinstance(placement, Replicate) else 1
        elif self._mesh.tp > 1:
            raise AssertionError(f"{name} is not split over the mesh")
        return 1 / (holders * (2 if name == self._tied else 1))

    def _add_other_end(self, gradient: Tensor) -> None:
        """The first and the last stage exchange what they have, so both get the sum, and stay equal to the last bit."""
        line = self._mesh.line("pp")
        other, group = self._mesh.ranks("pp")[line.size - 1 - line.place], line.group
        mine, theirs = gradient.contiguous(), torch.empty_like(gradient)
        operations = [dist.P2POp(dist.isend, mine, other, group), dist.P2POp(dist.irecv, theirs, other, group)]
        with others_alive(), counted_as("gradients"):
            for work in dist.batch_isend_irecv(operations if line.place == 0 else operations[::-1]):
                work.wait()
        gradient.add_(theirs)


def _local(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
