"""What a rank computes with: the part of a runner that knows one shard, and nothing of the other ranks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor

from llmos.infer import memory
from llmos.infer.load import load_shard
from llmos.infer.native.runner import NativeModel, Span
from llmos.infer.shard import Shard
from llmos.infer.step import BLOCK_TOKENS, Step
from llmos.infer.torch_runner import Sum, TorchRunner


class Stage(Protocol):
    """One rank's layers over its own pages."""

    vocab_size: int
    """Of this rank: the rows of the output matrix that it holds."""
    blocks: int

    def run(self, step: Step, hidden_ND: Tensor | None, total: Sum | None) -> Tensor:
        """Hidden states [N, D] after these layers or, of a last stage, logits [L, vocab_size]; float32.

        ``hidden_ND`` is what the stage before gave, and may be overwritten. ``total`` sums over a tp group of several.
        """
        ...

    def stats(self) -> dict[str, object]:
        """JSON-able."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of the model in ``directory`` a rank is: number ``rank`` of ``tp`` × ``pp``, and how it computes.

    ``runner`` is native or torch. ``memory_bytes`` is for this rank's cache. JSON-able as a dict.
    """

    directory: str
    rank: int
    tp: int
    pp: int
    dtype: str
    device: str
    runner: str
    threads: int
    blocks: int | None
    memory_bytes: int | None
    context_length: int | None
    step_tokens: int
    step_logits: int

    @property
    def tp_rank(self) -> int:
        return self.rank % self.tp

    @property
    def stage(self) -> int:
        return self.rank // self.tp

    def to_json(self) -> dict[str, object]:
        """The arguments of another one."""
        return asdict(self)


def make_stage(part: Part, device: torch.device) -> Stage:
    """Load the weights of ``part``. Raises ModelError, UsageError, OutOfMemoryError, EngineError."""
    dtype: torch.dtype = getattr(torch, part.dtype)
    shard = load_shard(part.directory, dtype, device=device, tp=(part.tp_rank, part.tp), pp=(part.stage, part.pp))
    if part.runner == "native":
        return NativeStage(shard, part, dtype)
    return TorchRunner(
        shard,
        part.blocks,
        dtype=dtype,
        device=device,
        memory_bytes=part.memory_bytes,
        context_length=part.context_length,
        step_tokens=part.step_tokens,
        step_logits=part.step_logits,
    )


class NativeStage:
    """The native step, cut at the halves of layers where ranks add up."""

    def __init__(self, shard: Shard, part: Part, dtype: torch.dtype) -> None:
        heads = 2 * shard.kv_heads * shard.config.head_dim
        block_bytes = len(shard.layers) * heads * BLOCK_TOKENS * dtype.itemsize
        self._account = memory.account(
            torch.device("cpu"),
            weights_bytes=0,
            working_bytes=0,
            block_bytes=block_bytes,
            blocks=part.blocks,
            memory_bytes=part.memory_bytes,
            context_length=part.context_length or shard.config.max_position,
        )
        self.blocks, self._threads = self._account.blocks, part.threads
        cache_bits = 8 * dtype.itemsize
        self._model = NativeModel(shard, self.blocks, cache_bits=cache_bits, threads=part.threads)
        self.vocab_size, self._width = self._model.vocab_size, shard.config.hidden_size
        self._first, self._last = shard.embedding_VD is not None, shard.output is not None
        self._keep, self._halves = part.tp_rank == 0, 2 * len(shard.layers)

    def run(self, step: Step, hidden_ND: Tensor | None, total: Sum | None) -> Tensor:
        """See :class:`Stage`."""
        room_ND = self._model.hidden(len(step.tokens_N))
        if hidden_ND is not None:
            room_ND[:, : self._width] = hidden_ND
        prepared = self._model.prepared(step, room_ND, self._threads)
        if total is None:
            logits_LV = prepared.run(Span(0, self._halves, self._first, self._last))
        else:
            for half in range(self._halves):
                prepared.run(Span(half, half + 1, embed=self._first and half == 0, keep=self._keep))
                total(room_ND)
            logits_LV = prepared.run(Span(self._halves, self._halves, logits=True)) if self._last else None
        return room_ND[:, : self._width] if logits_LV is None else logits_LV

    def stats(self) -> dict[str, object]:
        """See :class:`Stage`."""
        return {"runner": "native", **self._model.stats, "threads": self._threads, "memory": self._account.stats()}
