"""``bubble_1f1b``, ``bubble_interleaved``, ``bubble_zero``: how long pipeline ranks idle, against what is inevitable.

Four ranks run eight micro-batches through llmos's own pipeline. Its stages are tiny and slowed by a known sleep: T for
a forward pass, T for the gradient of the activations, T for that of the weights; of a rank with two stages, each sleeps
half as long. A rank is idle for the share of a step that it does not spend in passes, asleep nearly all the time. The
peer is the same share of the schedule's own table, with passes that take T and communication that takes nothing:
(p - 1) / (m + p - 1) for 1F1B.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage

from benchmarks.ranks import on_ranks
from benchmarks.rows import Measured, Options
from llmos.models import ModelConfig, Transformer
from llmos.parallel.mesh import RankMesh
from llmos.parallel.model import Layout, SpreadModel
from llmos.parallel.stage import Numerics
from llmos.parallel.world import World
from llmos.train.loss import cross_entropy_sum

RANKS, MICRO_BATCHES = 4, 8
IDEAL_PCT = {"1f1b": 27.3, "interleaved": 15.8, "zero_bubble": 5.9}
_LENGTH, _VOCABULARY = 16, 64


def bubble_1f1b(options: Options) -> Measured:
    """One forward, one backward in turns; one stage a rank."""
    return _bubble("1f1b", 1, options)


def bubble_interleaved(options: Options) -> Measured:
    """Two stages a rank."""
    return _bubble("interleaved", 2, options)


def bubble_zero(options: Options) -> Measured:
    """Two stages a rank, and the gradients of weights fill the gaps."""
    return _bubble("zero_bubble", 2, options)


def _bubble(schedule: str, stages: int, options: Options) -> Measured:
    slept_s, steps = (0.5, 1) if options.quick else (0.8, 1)
    found = on_ranks(RANKS, _idle_pct, schedule, stages, slept_s / stages, steps)
    value, ideal = statistics.mean(found), IDEAL_PCT[schedule]
    what = f"{RANKS} ranks of {stages} stages, {MICRO_BATCHES} micro-batches, {1000 * slept_s / stages:.0f} ms a pass"
    each = ", ".join(f"{idle:.1f}" for idle in found)
    return Measured(value, ideal, value / ideal, f"{what}, median of {steps} steps; by rank {each} %")


def _idle_pct(schedule: str, stages: int, sleep_s: float, steps: int) -> float:
    """The share of a step that this rank does not spend in passes, in percent; the median of ``steps``."""
    torch.manual_seed(0)
    shape = ModelConfig(_VOCABULARY, 16, 32, RANKS * stages, 2, 2, 8, _LENGTH, tie_embeddings=False)
    whole = Transformer(shape)
    layers = [SlowLayer(layer) for layer in whole.model.layers]
    whole.model.layers = nn.ModuleList(layers)
    mesh = RankMesh(World.current(), pp=RANKS)
    layout = Layout(1, MICRO_BATCHES, _LENGTH, schedule, stages)
    spread = SpreadModel(whole, mesh, layout, cross_entropy_sum, Numerics())
    tokens_BT = torch.randint(_VOCABULARY, (MICRO_BATCHES, _LENGTH))
    spent_s: list[float] = []
    for name in ("forward_one_chunk", "backward_one_chunk", "backward_weight_one_chunk"):
        setattr(PipelineStage, name, _timed(getattr(PipelineStage, name), spent_s))
    idle = []
    for number in range(steps + 1):  # the first step sets the schedule up, and need not sleep
        for layer in layers:
            layer.sleep_s = sleep_s if number else 0.0
        spent_s.clear()
        dist.barrier()
        began = time.perf_counter()
        spread.passes.accumulate(tokens_BT, tokens_BT)
        dist.barrier()
        idle.append(100 * (1 - sum(spent_s) / (time.perf_counter() - began)))
    assert sum(spent_s) >= 3 * sleep_s * MICRO_BATCHES * stages, "a pass did not sleep"
    return statistics.median(idle[1:])


def _timed(do: Callable[..., Any], spent_s: list[float]) -> Callable[..., Any]:
    """``do``, which adds the seconds that it takes to ``spent_s``."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = do(*args, **kwargs)
        spent_s.append(time.perf_counter() - began)
        return result

    return timed


class SlowLayer(nn.Module):
    """``layer`` that sleeps ``sleep_s`` in its forward pass and in each half of its backward pass."""

    def __init__(self, layer: nn.Module, sleep_s: float = 0.0) -> None:
        super().__init__()
        self.layer, self.sleep_s = layer, sleep_s
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x_BTD: Tensor, *more: Any) -> Tensor:
        time.sleep(self.sleep_s)
        x_BTD = cast(Tensor, self.layer(x_BTD, *more))
        return _slow_backward(x_BTD, self.sleep_s) * _slow_backward(self.gain, self.sleep_s)


def _slow_backward(x: Tensor, sleep_s: float) -> Tensor:
    return cast(Tensor, _SlowBackward.apply(x, sleep_s))  # type: ignore[no-untyped-call]


class _SlowBackward(torch.autograd.Function):
    """The identity, whose backward pass sleeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sleep_s: float) -> Tensor:
        ctx.sleep_s = sleep_s
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *d_out: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.sleep_s)
        return d_out[0], None
