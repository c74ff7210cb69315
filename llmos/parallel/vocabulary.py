"""The output matrix split by vocabulary over tp ranks, and the sums that a loss over all of it needs.

With logits z of all ranks, the loss of a token with target t is log Σ exp(z - h) - (z_t - h), where h is the highest:
each rank finds its own highest logit, its own sum, and z_t if it holds it. Two all-reduces of a few numbers a token
replace the all-gather of its logits (Shoeybi et al., arXiv 1909.08053, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from llmos.parallel.meter import counted_as

SEQUENCE = Shard(1)
"""How tp ranks share hidden states, [B, T, D], between layers."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The part of the output matrix that this rank holds: rows from ``first`` on. The ranks of ``mesh`` hold it all."""

    first: int
    mesh: DeviceMesh

    def largest(self, values: Tensor) -> Tensor:
        """The largest of all ranks' ``values``, element by element, in place."""
        with counted_as("tp"):
            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.mesh.get_group())
        return values

    def sum(self, values: Tensor) -> Tensor:
        """The sum of all ranks' ``values``, element by element, in place."""
        with counted_as("tp"):
            dist.all_reduce(values, group=self.mesh.get_group())
        return values


def whole_sequence(hidden_BTD: Tensor, mesh: DeviceMesh) -> Tensor:
    """All ranks' parts of the sequence, [B, T, D]. Each rank's gradient of it is a summand of the gradient."""
    gathered = DTensor.from_local(hidden_BTD, mesh, [SEQUENCE], run_check=False).redistribute(mesh, [Replicate()])
    return gathered.to_local(grad_placements=[Partial()])
