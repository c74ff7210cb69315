"""``mfu_1p3b``: which share of a GPU's peak training reaches. Runs with ``DEVICE=cuda``.

A Llama of 1.3 B parameters in bf16, sequences of 2,048 tokens, compiled layer by layer. The operations are those of
:meth:`llmos.core.capacity.ModelShape.training_flops` (6 per weight and the causal half of attention, per token; nothing
that is computed twice counts twice), the peak is the data sheet's, without sparsity.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from benchmarks.rows import Measured, Options, Unmeasured
from llmos.core.capacity import KINDS, ModelShape
from llmos.models import ModelConfig, Transformer
from llmos.parallel.calibrate import kind_name
from llmos.parallel.gradients import Gradients
from llmos.parallel.mesh import RankMesh
from llmos.parallel.model import Layout, SpreadModel
from llmos.parallel.stage import Numerics
from llmos.parallel.world import World
from llmos.spec import Optimizer as OptimizerSpec
from llmos.train.loss import cross_entropy_sum
from llmos.train.optimizer import Optimizer

WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Run:
    """Steps of ``accumulate`` micro-batches of ``rows`` sequences of ``length`` tokens."""

    config: ModelConfig
    rows: int
    accumulate: int
    length: int
    steps: int
    dtype: torch.dtype = torch.bfloat16
    compiled: bool = True


LLAMA_1P3B = Run(
    ModelConfig(32000, 2048, 5504, 24, 16, 16, 128, 2048, tie_embeddings=False),
    rows=8,
    accumulate=2,
    length=2048,
    steps=20,
)


def mfu_1p3b(options: Options) -> Measured:
    """Raises Unmeasured without a GPU, or with one whose peak is not known."""
    if options.device != "cuda" or not torch.cuda.is_available():
        raise Unmeasured("no GPU: run with DEVICE=cuda on a machine that has one")
    kind = KINDS.get(kind_name())
    if kind is None:
        raise Unmeasured(
            f"the peak of {torch.cuda.get_device_name(0)} is not known: expected one of {', '.join(KINDS)}"
        )
    run = LLAMA_1P3B
    tokens_per_s = training_speed(run, World(device=torch.device("cuda")))
    flops = tokens_per_s * ModelShape.of(run.config).training_flops(run.length)
    what = f"{torch.cuda.get_device_name(0)}: {tokens_per_s:,.0f} tokens/s, {flops / 1e12:.0f} TFLOP/s"
    sizes = f"{run.config.num_parameters / 1e9:.2f} B parameters, {run.accumulate} × {run.rows} × {run.length} tokens"
    return Measured(100 * flops / kind.peak["bf16"], why=f"{what}; {sizes}, bf16, compiled")


def training_speed(run: Run, world: World) -> float:
    """Tokens per second of whole optimizer steps on ``world``'s device, by the median step."""
    torch.manual_seed(0)
    share = run.rows * run.accumulate
    mesh, layout = RankMesh(world), Layout(rows=run.rows, share=share, length=run.length)
    numerics = Numerics(dtype=run.dtype, compiled=run.compiled)
    spread = SpreadModel(Transformer(run.config), mesh, layout, cross_entropy_sum, numerics)
    optimizer = Optimizer(spread.parameters, OptimizerSpec(), mesh.line("dp"))
    gradients = Gradients(spread.parameters, mesh, riders=1, tied=run.config.tie_embeddings)
    spread.set_scale(1 / (share * run.length))
    tokens_BW = torch.randint(run.config.vocab_size, (share, run.length + 1), device=world.device)
    times = []
    for _ in range(WARM_UP + run.steps):
        began = time.perf_counter()
        gradients.zero()
        spread.passes.accumulate(tokens_BW[:, :-1].contiguous(), tokens_BW[:, 1:].contiguous())
        _, norm = gradients.sum([0.0])  # a number of the GPU's: waits for all that came before
        gradients.scale(min(1.0, 1.0 / (norm + 1e-6)))
        optimizer.step(1e-4, gradients.local())
        times.append(time.perf_counter() - began)
    return share * run.length / statistics.median(times[WARM_UP:])
