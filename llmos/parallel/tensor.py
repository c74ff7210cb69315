"""Tensor parallelism with sequence parallelism: every layer is shared by the ranks of a tp group.

Attention heads and feed-forward columns are split (Shoeybi et al., arXiv 1909.08053): y = f(x · A) · B with A split by
columns and B by rows needs no communication inside, and the tp partial results are summed after. Between layers each
rank keeps its part of the sequence only (Korthikanti et al., arXiv 2205.05198): the sum becomes a reduce-scatter, and
the next layer begins with an all-gather. Both together send as many bytes as the all-reduce of plain tensor
parallelism, and norms and residual streams take 1/tp of the memory and the work; that is why there is no switch.

The embedding and the output matrix are split by vocabulary, and so is the loss: see :mod:`llmos.parallel.vocabulary`.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from llmos.models.adapter import LoraLinear
from llmos.models.linear import Linear
from llmos.models.norm import RMSNorm, normalize
from llmos.parallel.sequence import summed_part, whole_sequence
from llmos.parallel.stage import Stage
from llmos.parallel.vocabulary import Vocabulary


def parallelize(stage: Stage, mesh: DeviceMesh) -> None:
    """Split the parameters of ``stage`` over the ranks of ``mesh``, in place; each keeps its part of what it has.

    No rank sends anything: all must hold the same weights.
    """
    for layer in stage.layers:
        parallelize_module(layer, mesh, _of(layer, _layer_plan()), src_data_rank=None)
    ends: dict[str, ParallelStyle] = {
        "model.embed_tokens": _VocabularyRows(),
        "model.norm": _LocalNorm(),
    }
    parallelize_module(stage, mesh, _of(stage, ends), src_data_rank=None)
    if stage.lm_head is not None:
        _distribute(stage.lm_head, mesh, Shard(0))  # the loss reads it: see Stage
    stage.vocabulary = Vocabulary(_first_row(stage.config.vocab_size, mesh), mesh)


def _of(module: nn.Module, plan: dict[str, ParallelStyle]) -> dict[str, ParallelStyle]:
    """What of ``plan`` is there: a stage may have no ends, and not every family has norms of heads."""
    there = dict(module.named_modules())
    return {name: style for name, style in plan.items() if name in there}


def _layer_plan() -> dict[str, ParallelStyle]:
    return {
        "input_layernorm": _LocalNorm(),
        "self_attn": _WholeSequence(),
        "self_attn.q_proj": _Columns(),
        "self_attn.k_proj": _Columns(),
        "self_attn.v_proj": _Columns(),
        "self_attn.q_norm": _LocalNorm(),
        "self_attn.k_norm": _LocalNorm(),
        "self_attn.o_proj": _Rows(),
        "post_attention_layernorm": _LocalNorm(),
        "mlp": _WholeSequence(),
        "mlp.gate_proj": _Columns(),
        "mlp.up_proj": _Columns(),
        "mlp.down_proj": _Rows(),
    }


class _WholeSequence(ParallelStyle):
    """What reads all of each sequence, of which each rank has a part."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        group = device_mesh.get_group()

        def gather(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return whole_sequence(args[0], group), *args[1:]

        module.register_forward_pre_hook(gather)
        return module


class _Columns(ParallelStyle):
    """A product with the columns of A that this rank has, of tensors and not of DTensors: see models/linear.py."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        _distribute(module, device_mesh, Shard(0))
        if module.bias is not None:
            _distribute(module, device_mesh, Shard(0), "bias")
        if isinstance(module, LoraLinear):
            _distribute(module, device_mesh, Replicate(), "lora_A")
            _distribute(module, device_mesh, Shard(0), "lora_B")
        module.__class__ = _ColumnsLora if isinstance(module, LoraLinear) else _ColumnsLinear
        return module


class _ColumnsLinear(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, _local(self.weight), None if self.bias is None else _local(self.bias))


class _ColumnsLora(LoraLinear):
    """Every rank has all of A, and the rows of B that belong to its columns: its gradient of A is a summand."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else _local(self.bias)
        return self.adapted(x, _local(self.weight), bias, _local(self.lora_A, [Partial()]), _local(self.lora_B))


class _Rows(ParallelStyle):
    """A product with the rows of B that this rank has: a summand, of which each rank takes its part of the sum."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        _distribute(module, device_mesh, Shard(1))
        if isinstance(module, LoraLinear):
            _distribute(module, device_mesh, Shard(1), "lora_A")
            _distribute(module, device_mesh, Replicate(), "lora_B")
        module.__class__ = _RowsLora if isinstance(module, LoraLinear) else _RowsLinear
        assert isinstance(module, _RowsLora | _RowsLinear)
        module.group = device_mesh.get_group()
        return module


class _RowsLinear(Linear):
    group: ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        return summed_part(self.product(x, _local(self.weight)), self.group)


class _RowsLora(LoraLinear):
    """A summand as well, for (x · Aᵀ) · Bᵀ is linear in the parts of x · Aᵀ: nothing more is sent. Every rank has all
    of B, its gradient of it is a summand."""

    group: ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        a, b = _local(self.lora_A), _local(self.lora_B, [Partial()])
        return summed_part(self.adapted(x, _local(self.weight), None, a, b), self.group)


class _VocabularyRows(ParallelStyle):
    """The embeddings that this rank has: a summand, as they are 0 for tokens whose rows are another's."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, nn.Embedding)
        _distribute(module, device_mesh, Shard(0))
        module.__class__ = _PartEmbedding
        assert isinstance(module, _PartEmbedding)
        module.first, module.group = _first_row(module.num_embeddings, device_mesh), device_mesh.get_group()
        return module


class _PartEmbedding(nn.Embedding):
    first: int
    group: ProcessGroup

    def forward(self, tokens_BT: Tensor) -> Tensor:
        weight_RD = _local(self.weight)
        rows_BT = tokens_BT - self.first
        others_BT = (rows_BT < 0) | (rows_BT >= len(weight_RD))
        mine_BTD = F.embedding(rows_BT.masked_fill(others_BT, 0), weight_RD)
        return summed_part(mine_BTD.masked_fill(others_BT[..., None], 0.0), self.group)


class _LocalNorm(ParallelStyle):
    """A norm of this rank's part of the sequence, or of its heads: the weight is whole on every rank, its gradient a
    summand.

    The sum over ranks is left to the end of a step (:mod:`llmos.parallel.gradients`), where it is one collective.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, RMSNorm)
        _distribute(module, device_mesh, Replicate())
        module.__class__ = _PartNorm
        return module


class _PartNorm(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, _local(self.weight, [Partial()]), self.eps)


def _first_row(vocab_size: int, mesh: DeviceMesh) -> int:
    """The first of the vocabulary's rows that this rank has; the last ranks may have fewer than the others."""
    return -(-vocab_size // mesh.size()) * mesh.get_local_rank()


def _distribute(module: Any, mesh: DeviceMesh, placement: Placement, name: str = "weight") -> None:
    whole = getattr(module, name)
    part = distribute_tensor(whole, mesh, [placement], src_data_rank=None)
    setattr(module, name, nn.Parameter(part, requires_grad=whole.requires_grad))


def _local(weight: Tensor, grad_placements: list[Placement] | None = None) -> Tensor:
    assert isinstance(weight, DTensor)
    return weight.to_local(grad_placements=grad_placements)
