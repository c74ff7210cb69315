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

from llmos.parallel.meter import counted_as


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
