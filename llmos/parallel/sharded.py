"""Fully sharded data parallelism (ZeRO stage 3: Rajbhandari et al., arXiv 1910.02054), with torch's ``fully_shard``.

Each of n fsdp ranks holds 1/n of every parameter, gradient and optimizer state. A layer's parameters are gathered just
before it computes and dropped after; its gradients are summed and scattered as soon as they are known. With dp > 1 the
shards are copied (HSDP): gathered among the fsdp ranks only, and their gradients summed over the copies too.
"""

from __future__ import annotations

from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from llmos.parallel.mesh import RankMesh
from llmos.parallel.stage import Numerics, Stage


def shard(stage: Stage, mesh: RankMesh, numerics: Numerics) -> None:
    """Shard ``stage`` layer by layer, in place. All ranks must hold the same weights; none sends anything.

    Shards are fp32, what is gathered has the type ``numerics.weights``. Gradients are sums over the ranks, not means.
    In a pipeline, whose stages run many micro-batches, parameters stay gathered until the last one is done.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=numerics.weights, reduce_dtype=numerics.reduction, cast_forward_inputs=False
    )
    devices = mesh.devices["dp", "fsdp"] if mesh.dp > 1 else mesh.devices["fsdp"]
    for module in (*stage.layers, stage):
        root = module is stage
        fully_shard(module, mesh=devices, mp_policy=policy, reshard_after_forward=not root and mesh.pp == 1)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        if mesh.world.device.type == "cpu":
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other


def sum_copies(stage: Stage, now: bool) -> None:
    """Whether the next backward pass ends with the sum over dp, which one in a step does: before, shards add up."""
    if isinstance(stage, FSDPModule):
        stage.set_requires_all_reduce(now)
