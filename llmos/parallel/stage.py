"""A part of the model as training runs it: consecutive layers, from tokens or hidden states to those or the loss.

Without pipeline parallelism there is one stage, the whole model. Parameters keep the names they have in the whole
model, so that a checkpoint does not know how the model was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from llmos.models import Transformer
from llmos.models.linear import PRODUCT
from llmos.models.norm import product_dtype
from llmos.models.rope import rotations
from llmos.models.transformer import Rotation, first_visible
from llmos.parallel.sequence import whole_sequence
from llmos.parallel.vocabulary import Vocabulary

Objective = Callable[[Tensor, Tensor, Tensor, float, Vocabulary | None], Tensor]
"""Loss of hidden states [N, D], given the output matrix [V, D], targets [N] (those below 0 do not count), a factor, and
where this rank's part of the vocabulary lies if it holds a part only."""

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True, slots=True)
class Numerics:
    """How a stage computes.

    ``dtype`` is that of matrix products, ``weights`` that of the parameters while they are used, ``reduction`` that in
    which gradients are summed over data-parallel ranks. ``recompute`` is activation checkpointing; ``compiled`` says
    whether each layer is compiled.
    """

    dtype: torch.dtype = torch.float32
    weights: torch.dtype = torch.float32
    reduction: torch.dtype = torch.float32
    recompute: Recompute = "none"
    compiled: bool = False


class _Parts(nn.Module):
    """The counterpart of ``Decoder``, with what a stage has of it."""

    def __init__(self, embed_tokens: nn.Embedding | None, layers: dict[str, nn.Module], norm: nn.Module | None) -> None:
        super().__init__()
        self.embed_tokens, self.layers, self.norm = embed_tokens, nn.ModuleDict(layers), norm


class Stage(nn.Module):
    """``layers`` of ``whole``, with the embedding before the first layer and the loss after the last one.

    The loss is part of :meth:`forward`, not a function applied to its result: FSDP holds the output matrix only while a
    forward pass runs. With tied embeddings both ends of a pipeline hold the matrix, under the same name.
    """

    def __init__(self, whole: Transformer, layers: range, objective: Objective, numerics: Numerics) -> None:
        super().__init__()
        self.config, self.objective, self.numerics = whole.config, objective, numerics
        self.first, self.last = layers.start == 0, layers.stop == whole.config.num_layers
        self.scale = 1.0
        self.vocabulary: Vocabulary | None = None
        body, embeds = whole.model, self.first or (self.last and whole.config.tie_embeddings)
        mine = {str(layer): body.layers[layer] for layer in layers}
        self.model = _Parts(body.embed_tokens if embeds else None, mine, body.norm if self.last else None)
        self.lm_head = whole.lm_head if self.last else None

    @property
    def layers(self) -> Iterator[nn.Module]:
        """This stage's layers, from the first on."""
        return iter(self.model.layers.values())

    def forward(self, x: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """The hidden states after this stage's layers or, from the last stage, the loss times ``scale``.

        ``x`` is tokens [B, T] for the first stage, else the hidden states before this one. Under tensor parallelism
        hidden states between layers are this rank's part of each sequence, [B, T / tp, D]. ``documents_BT``: see
        :meth:`Transformer.hidden`.
        """
        kind, dtype = x.device.type, self.numerics.dtype
        with torch.autocast(kind, dtype=dtype, enabled=dtype is not torch.float32):
            if self.first and self.model.embed_tokens:
                x = self.model.embed_tokens(x).float()  # see Layer: the stream between layers is fp32
            positions = torch.arange(targets_BT.shape[1], device=x.device)
            positions = positions if documents_BT is None else positions - documents_BT
            cos, sin = (part.to(product_dtype(x)) for part in rotations(self.config, positions))
            first_BT = first_visible(self.config, documents_BT, targets_BT)
            for layer in self.layers:
                x = self._run(layer, x, (cos, sin), first_BT)
            if self.model.norm is None:
                return x
            hidden_BTD = self.model.norm(x)
        if self.vocabulary:
            hidden_BTD = whole_sequence(hidden_BTD, self.vocabulary.mesh.get_group())
        hidden_ND = hidden_BTD.flatten(0, 1).to(dtype)
        return self.objective(hidden_ND, self._output_weight(), targets_BT.flatten(), self.scale, self.vocabulary)

    def _output_weight(self) -> Tensor:
        matrix = self.lm_head or self.model.embed_tokens
        assert matrix is not None
        return matrix.weight.to_local() if isinstance(matrix.weight, DTensor) else matrix.weight

    def _run(self, layer: nn.Module, x_BTD: Tensor, rotation: Rotation, first_BT: Tensor | None) -> Tensor:
        recompute = self.numerics.recompute
        told = (x_BTD, rotation, first_BT)
        if recompute == "none" or not torch.is_grad_enabled():
            return cast(Tensor, layer(*told))
        contexts: dict[str, Any] = {}
        if recompute == "selective":
            contexts = {"context_fn": partial(create_selective_checkpoint_contexts, _keep_products)}
        result = checkpoint(layer, *told, use_reentrant=False, preserve_rng_state=False, **contexts)
        return cast(Tensor, result)


_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, *([PRODUCT.default] if PRODUCT else []))


def _keep_products(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep what the weights' matrix products give, compute the rest again: norms, SwiGLU, and the attention core, whose
    probabilities take memory in the square of the sequence (Korthikanti et al., arXiv 2205.05198, section 5)."""
    return CheckpointPolicy.MUST_SAVE if operation in _PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE
