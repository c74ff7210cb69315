"""Each tp rank holds a part of every sequence between layers: here they gather them, and sum what each computed.

The two are each other's transposes: the gradient of an all-gather is a reduce-scatter, and the other way round.

On CPUs the reduce-scatter is an all-to-all and a sum, which sends as many bytes: gloo's own took 1.5 times as long for
2 ranks, and 2 times for 4 (torch 2.13; 256 tokens of 768 features, 1 to 8 rows).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from llmos.parallel.meter import counted_as

# their names since torch 2.13, and before
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def whole_sequence(part_BTD: Tensor, group: ProcessGroup) -> Tensor:
    """The sequences [B, T, D] of which each rank has a part, [B, T / tp, D]. Each rank's gradient is a summand."""
    return cast(Tensor, _exchange(part_BTD, group, _gather, _sum))


def summed_part(summand_BTD: Tensor, group: ProcessGroup) -> Tensor:
    """This rank's part, [B, T / tp, D], of the sum of all ranks' ``summand_BTD``."""
    return cast(Tensor, _exchange(summand_BTD, group, _sum, _gather))


Collective = Callable[[Tensor, ProcessGroup], Tensor]


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup, do: Collective, transposed: Collective) -> Tensor:
        ctx.group, ctx.transposed = group, transposed
        return do(x, group)

    @staticmethod
    def backward(ctx: Any, *d_out: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.transposed(d_out[0], ctx.group), None, None, None


_exchange: Callable[..., Any] = _Exchange.apply


def keep_out_of_compiled_code() -> None:
    """Have torch.compile call exchanges as they are, between what it compiles: it cannot follow them to the process
    group, and says so with a page of warnings for each layer."""
    global _exchange
    _exchange = torch.compiler.disable(_Exchange.apply)


def _gather(part_BTD: Tensor, group: ProcessGroup) -> Tensor:
    rows, length, features = part_BTD.shape
    parts_NBTD = part_BTD.new_empty(group.size(), rows, length, features)
    with counted_as("tp"):
        _all_gather(parts_NBTD.flatten(0, 1), part_BTD.contiguous(), group=group)
    return parts_NBTD.transpose(0, 1).reshape(rows, -1, features)


def _sum(summand_BTD: Tensor, group: ProcessGroup) -> Tensor:
    parts_NBTD = summand_BTD.unflatten(1, (group.size(), -1)).transpose(0, 1).contiguous()
    with counted_as("tp"):
        if summand_BTD.device.type == "cpu":
            received_NBTD = torch.empty_like(parts_NBTD)
            dist.all_to_all_single(received_NBTD, parts_NBTD, group=group)
            return received_NBTD.sum(0)
        sum_BTD = torch.empty_like(parts_NBTD[0])
        _reduce_scatter(sum_BTD, parts_NBTD.flatten(0, 1), group=group)
        return sum_BTD
