"""The loop of ``llmos doctor --network --cluster``: a job whose metrics are how fast its workers sum."""

from __future__ import annotations

import torch.distributed as dist

from llmos.errors import UsageError
from llmos.parallel import network
from llmos.train.context import Context


def measure(context: Context) -> None:
    """Measure between the workers of this gang, over the network that training uses, and report it as step 1."""
    if dist.get_world_size() < 2:
        raise UsageError("one worker has nobody to sum with: expected at least 2", param="workers")
    context.report(1, **network.numbers(network.measure(context.device)))
