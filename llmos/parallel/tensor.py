"""Tensor parallelism with sequence parallelism: every layer is shared by the ranks of a tp group.

Attention heads and feed-forward columns are split (Shoeybi et al., arXiv 1909.08053): y = f(x · A) · B with A split by
columns and B by rows needs no communication inside, and the tp partial results are summed after. Between layers each
rank keeps its part of the sequence only (Korthikanti et al., arXiv 2205.05198): the sum becomes a reduce-scatter, and
the next layer begins with an all-gather. Both together send as many bytes as the all-reduce of plain tensor
parallelism, and norms and residual streams take 1/tp of the memory and the work; that is why there is no switch.

The embedding and the output matrix are split by vocabulary, and so is the loss: see :mod:`llmos.parallel.vocabulary`.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from llmos.models.norm import RMSNorm, normalize
from llmos.parallel.stage import Stage
from llmos.parallel.vocabulary import SEQUENCE, Vocabulary


def parallelize(stage: Stage, mesh: DeviceMesh) -> None:
    """Split the parameters of ``stage`` over the ranks of ``mesh``, in place; each keeps its part of what it has.

    No rank sends anything: all must hold the same weights.
    """
    for layer in stage.layers:
        parallelize_module(layer, mesh, _layer_plan(), src_data_rank=None)
    ends: dict[str, ParallelStyle] = {
        "model.embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=SEQUENCE),
        "model.norm": _LocalNorm(),
        "lm_head": ColwiseParallel(),
    }
    there = dict(stage.named_modules())
    parallelize_module(stage, mesh, {name: style for name, style in ends.items() if name in there}, src_data_rank=None)
    rows = -(-stage.config.vocab_size // mesh.size())
    stage.vocabulary = Vocabulary(rows * mesh.get_local_rank(), mesh)


def _layer_plan() -> dict[str, ParallelStyle]:
    attention_in = PrepareModuleInput(
        input_layouts=(SEQUENCE, None, None, None), desired_input_layouts=(Replicate(), None, None, None)
    )
    return {
        "input_layernorm": _LocalNorm(),
        "self_attn": attention_in,
        "self_attn.q_proj": ColwiseParallel(),
        "self_attn.k_proj": ColwiseParallel(),
        "self_attn.v_proj": ColwiseParallel(),
        "self_attn.o_proj": RowwiseParallel(output_layouts=SEQUENCE),
        "post_attention_layernorm": _LocalNorm(),
        "mlp": PrepareModuleInput(input_layouts=(SEQUENCE,), desired_input_layouts=(Replicate(),)),
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(output_layouts=SEQUENCE),
    }


class _LocalNorm(ParallelStyle):
    """A norm of this rank's part of the sequence: the weight is whole on every rank, its gradient a summand.

    The sum over ranks is left to the end of a step (:mod:`llmos.parallel.gradients`), where it is one collective.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, RMSNorm)
        weight = distribute_tensor(module.weight, device_mesh, [Replicate()], src_data_rank=None)
        module.weight = nn.Parameter(weight, requires_grad=module.weight.requires_grad)
        module.__class__ = _PartNorm
        return module


class _PartNorm(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        assert isinstance(weight, DTensor)
        return normalize(x, weight.to_local(grad_placements=[Partial()]), self.eps)
