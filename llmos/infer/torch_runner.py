"""The runner in plain torch, for every device: fused products with packed weights, attention over gathered pages.

Suffixes of tensors: N tokens of a step, D hidden features, H query heads, K key heads, E features of a head.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llmos.infer import memory
from llmos.infer.decode_graphs import DecodeGraphs, captured
from llmos.infer.packed import Product, activation_dtype, pack
from llmos.infer.paged_attention import Pages, Plan
from llmos.infer.shard import LayerShard, Matrix, Shard
from llmos.infer.step import BLOCK_TOKENS, Step
from llmos.models.rope import rotations

Sum = Callable[[Tensor], None]
"""Adds up the tensors of the ranks of a tp group, in place, in each of them."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Layer:
    """Features of queries and keys in the order of :func:`_paired`. ``qk_norm_HE`` has a row for each of both."""

    attention_norm_D: Tensor
    qkv: Product
    qk_norm_HE: Tensor | None
    out: Product
    mlp_norm_D: Tensor
    gate_up: Product
    down: Product


def _pages_class(device: torch.device, dtype: torch.dtype) -> type[Pages]:
    if device.type != "cuda" or dtype is torch.float32:
        return Pages
    from llmos.infer.varlen_attention import VarlenPages  # imports torch's compiler, which takes seconds

    return VarlenPages


class TorchRunner:
    """Computes the steps of a shard: see :class:`llmos.infer.step.Runner`.

    ``dtype`` is that of the model. ``blocks`` None: as many as ``memory_bytes`` hold, or a share of what is free; then
    one sequence of ``context_length`` tokens (default: the model's) must fit. ``step_tokens`` and ``step_logits`` are
    the largest step's, to know its working space. The matrices of ``shard`` are emptied as they are packed, so that no
    weight is there twice. Raises OutOfMemoryError.
    """

    depth = 1

    def __init__(
        self,
        shard: Shard,
        blocks: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        memory_bytes: int | None = None,
        context_length: int | None = None,
        step_tokens: int = 512,
        step_logits: int = 64,
    ) -> None:
        config, self.device = shard.config, torch.device(device)
        self.config, self._heads, self._kv_heads = config, shard.heads, shard.kv_heads
        self._active = activation_dtype(dtype, self.device)
        self._kernels: Counter[str] = Counter()
        self._weights_bytes = 0
        self._layers = [self._pack_layer(layer, dtype) for layer in shard.layers]
        self._embedding_VD, self._norm_D = shard.embedding_VD, shard.norm_D
        self._weights_bytes += 0 if shard.embedding_VD is None else shard.embedding_VD.nbytes
        self._output = None if shard.output is None else self._pack_output(shard.output, dtype)
        self.vocab_size = config.vocab_size if shard.output is None else len(shard.output.weight)
        block_bytes = len(shard.layers) * 2 * shard.kv_heads * config.head_dim * BLOCK_TOKENS * self._active.itemsize
        self.account = memory.account(
            self.device,
            weights_bytes=self._weights_bytes,
            working_bytes=_working_bytes(shard, step_tokens, step_logits),
            block_bytes=block_bytes,
            blocks=blocks,
            memory_bytes=memory_bytes,
            context_length=context_length or config.max_position,
        )
        self.blocks = self.account.blocks
        sizes = (len(shard.layers), shard.heads, shard.kv_heads, config.head_dim)
        self.pages = _pages_class(self.device, self._active)(*sizes, self.blocks, self._active, self.device)
        self._graphs = DecodeGraphs(self, captured) if self.device.type == "cuda" else None
        self._done: deque[Tensor] = deque()
        _log.info("%s", self.account)

    def start(self, step: Step) -> None:
        """See :class:`llmos.infer.step.Runner`."""
        logits_LV = None if self._graphs is None else self._graphs.run(step)
        self._done.append(self.run(step) if logits_LV is None else logits_LV)

    def finish(self) -> Tensor:
        """See :class:`llmos.infer.step.Runner`."""
        return self._done.popleft()

    def stats(self) -> dict[str, object]:
        """See :class:`llmos.infer.step.Runner`."""
        return {"runner": "torch", "kernels": dict(self._kernels), "memory": self.account.stats()}

    def close(self) -> None:
        """See :class:`llmos.infer.step.Runner`."""
        self._layers.clear()
        self._graphs = None
        del self.pages, self._embedding_VD, self._output

    @torch.inference_mode()
    def run(self, step: Step, hidden_ND: Tensor | None = None, total: Sum | None = None) -> Tensor:
        """One forward pass through this rank's layers: logits [L, V] or, of a stage before the last, hidden states.

        Both are float32. ``hidden_ND`` is what the stage before gave; ``total`` sums over the ranks of a tp group,
        whose last stages give the logits of their rows of the vocabulary.
        """
        plan = self.pages.begin(step, self.config.sliding_window)
        positions_N = torch.from_numpy(step.positions_N).to(self.device)
        start = torch.from_numpy(step.tokens_N).to(self.device) if hidden_ND is None else hidden_ND
        hidden_ND = self.hidden(start, positions_N, plan, total)
        if self._output is None:
            return hidden_ND
        return self.logits(hidden_ND[torch.from_numpy(step.logits_at_L).to(self.device)])

    def hidden(self, start: Tensor, positions_N: Tensor, plan: Plan, total: Sum | None = None) -> Tensor:
        """Hidden states [N, D] after the last layer here; ``start`` is those before the first, or tokens [N]."""
        hidden_ND = start
        if self._embedding_VD is not None:
            hidden_ND = F.embedding(start, self._embedding_VD).float()
        rotation_N1e = torch.complex(*rotations(self.config, positions_N))
        for at, layer in enumerate(self._layers):
            hidden_ND += self._attention(at, layer, hidden_ND, plan, rotation_N1e, total)
            hidden_ND += self._mlp(layer, hidden_ND, total)
        return hidden_ND

    def logits(self, hidden_LD: Tensor) -> Tensor:
        """[L, V], float32, of a last stage."""
        assert self._output is not None and self._norm_D is not None
        return self._output.multiply(self._normalized(hidden_LD, self._norm_D)).float()

    def _attention(
        self, at: int, layer: _Layer, hidden_ND: Tensor, plan: Plan, rotation_N1e: Tensor, total: Sum | None
    ) -> Tensor:
        heads, both = self._heads, self._heads + self._kv_heads
        x_ND = self._normalized(hidden_ND, layer.attention_norm_D)
        qkv_NHE = layer.qkv.multiply(x_ND).unflatten(1, (-1, self.config.head_dim))
        qk_NHE = qkv_NHE[:, :both].float()
        if layer.qk_norm_HE is not None:
            qk_NHE = F.rms_norm(qk_NHE, qk_NHE.shape[2:], None, self.config.norm_eps).mul_(layer.qk_norm_HE)
        torch.view_as_complex(qk_NHE.unflatten(2, (-1, 2))).mul_(rotation_N1e)
        if qk_NHE.data_ptr() != qkv_NHE.data_ptr():
            qkv_NHE[:, :both] = qk_NHE
        self.pages.write(at, plan, qkv_NHE[:, heads:])
        out_ND = layer.out.multiply(self.pages.attend(at, plan, qkv_NHE[:, :heads], qkv_NHE[:, heads:]))
        return _summed(out_ND, total)

    def _mlp(self, layer: _Layer, hidden_ND: Tensor, total: Sum | None) -> Tensor:
        x_ND = self._normalized(hidden_ND, layer.mlp_norm_D)
        gate_NF, up_NF = layer.gate_up.multiply(x_ND).chunk(2, dim=1)
        return _summed(layer.down.multiply(F.silu(gate_NF).mul_(up_NF)), total)

    def _normalized(self, hidden_ND: Tensor, weight_D: Tensor) -> Tensor:
        return F.rms_norm(hidden_ND, weight_D.shape, weight_D, self.config.norm_eps).to(self._active)

    def _pack_layer(self, layer: LayerShard, dtype: torch.dtype) -> _Layer:
        rows = _paired(self.config.head_dim, self._heads, self._kv_heads).to(layer.qkv.weight.device)
        qkv = _taken(layer.qkv, rows)
        _release(layer.qkv)
        bias = None if layer.qkv_bias is None else layer.qkv_bias[rows]
        products = [self._pack(qkv, bias, dtype)]
        for matrix in (layer.out, layer.gate_up, layer.down):
            products.append(self._pack(matrix, None, dtype))
            if products[-1].copied:
                _release(matrix)
        norms = (layer.attention_norm_D.to(self.device), layer.mlp_norm_D.to(self.device))
        return _Layer(norms[0], products[0], self._qk_norm(layer), products[1], norms[1], products[2], products[3])

    def _pack_output(self, matrix: Matrix, dtype: torch.dtype) -> Product:
        """With tied embeddings, ``matrix`` may be a view of the embedding, which stays."""
        product, embedding_VD = self._pack(matrix, None, dtype), self._embedding_VD
        tied = embedding_VD is not None and _shared(embedding_VD, matrix.weight)
        if tied and not product.copied:
            self._weights_bytes -= product.size_bytes
        if product.copied and not tied:
            _release(matrix)
        return product

    def _pack(self, matrix: Matrix, bias: Tensor | None, dtype: torch.dtype) -> Product:
        product = pack(matrix, bias, dtype, self.device)
        self._kernels[product.kernel] += 1
        self._weights_bytes += product.size_bytes
        return product

    def _qk_norm(self, layer: LayerShard) -> Tensor | None:
        if layer.query_norm_E is None or layer.key_norm_E is None:
            return None
        pairs_E = _paired(self.config.head_dim, 1, 0)
        norms = [layer.query_norm_E] * self._heads + [layer.key_norm_E] * self._kv_heads
        return torch.stack(norms).cpu()[:, pairs_E].to(self.device)


def _paired(head_dim: int, heads: int, kv_heads: int) -> Tensor:
    """The order of rows of queries, keys and values in which features i and i + E/2 of a query or key are neighbours.

    Then rotary positions are one product with complex numbers. Scores do not change: queries and keys agree.
    """
    turned = (heads + kv_heads) * head_dim
    pairs = torch.arange(turned).view(-1, 2, head_dim // 2).transpose(1, 2).flatten()
    return torch.cat((pairs, torch.arange(turned, turned + kv_heads * head_dim)))


def _taken(matrix: Matrix, rows: Tensor) -> Matrix:
    scale = None if matrix.scale is None else matrix.scale[rows]
    return Matrix(matrix.weight[rows], matrix.bits, scale, matrix.group)


def _shared(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _release(matrix: Matrix) -> None:
    """Give the memory of ``matrix`` back, whoever still holds it."""
    matrix.weight.untyped_storage().resize_(0)


def _summed(part_ND: Tensor, total: Sum | None) -> Tensor:
    if total is None:
        return part_ND
    part_ND = part_ND.float()
    total(part_ND)
    return part_ND


def _working_bytes(shard: Shard, tokens: int, logits: int) -> int:
    """float32 activations of the widest layer, twice, and logits with a copy for the sampler."""
    config = shard.config
    features = len(shard.layers[0].gate_up.weight) + config.hidden_size * 4
    features += (shard.heads + 2 * shard.kv_heads) * config.head_dim * 3
    return 4 * (2 * tokens * features + 2 * logits * config.vocab_size)
