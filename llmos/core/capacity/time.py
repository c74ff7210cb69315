"""Seconds of a training step: products, memory traffic, communication, the pipeline's bubble, the optimizer.

A rank's micro-batch is a sum of rooflines – products at the rate that products reach, everything else at the bandwidth
of memory – plus the communication that cannot hide behind them. docs/capacity.md writes the formulas out and compares
them with published runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmos.core.capacity.hardware import Hardware
from llmos.core.capacity.memory import (
    FP32,
    gathered_bytes,
    keeps_probabilities,
    layers_of,
    probabilities,
    stage_parameters,
)
from llmos.core.capacity.settings import OPTIMIZERS, RECOMPUTED, Mesh, Training
from llmos.core.capacity.shape import ModelShape

# The three constants of every kind of accelerator; they were fitted with each kind's ``sustained`` (docs/capacity.md).
ATTENTION_SHARE = 0.53
"""How fast attention's products are, relative to those of plain matrices of the same type."""
FP8_SHARE = 0.86
"""What fp8 reaches of its peak, relative to what bf16 reaches of its own: scaling and casting cost."""
MEMORY_SHARE = 0.8
"""What elementwise operations reach of the memory's bandwidth."""

EAGER_TRAFFIC = 2.5
"""Memory traffic without compilation, relative to fused operations: torchtitan's 8B, 5,762 and 6,667 tokens/s."""
HIDDEN_TP = 0.5
"""Share of tensor-parallel communication that asynchronous products hide: torchtitan's 70B, 597 to 652 tokens/s."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step on the slowest rank. ``communication_s`` is what nothing hides; ``bubble_s`` what ranks wait
    for each other in the pipeline. ``mfu``: model operations per second as a share of the peak in the precision's type
    (of bf16 for fp8, as everybody reports it)."""

    compute_s: float
    communication_s: float
    bubble_s: float
    optimizer_s: float
    tokens_per_s: float
    mfu: float

    @property
    def total_s(self) -> float:
        """The whole step."""
        return self.compute_s + self.communication_s + self.bubble_s + self.optimizer_s

    @property
    def bubble(self) -> float:
        """The bubble's share of the pipeline's time."""
        busy = self.compute_s + self.communication_s
        return self.bubble_s / (busy + self.bubble_s) if busy else 0.0


def step_time(shape: ModelShape, training: Training, mesh: Mesh, kind: Hardware) -> StepTime:
    """How long a step of ``training`` takes on ``mesh`` of ``kind``."""
    count = training.micro_batches(mesh)
    stages = {0, mesh.pp - 1}  # the first has a layer more where they do not divide, the last the output matrix
    compute_s = count * max(_stage_compute(shape, training, mesh, kind, stage) for stage in stages)
    inner_s = count * (_tensor_parallel(shape, training, mesh, kind) + _point_to_point(shape, training, mesh, kind))
    idle = bubble_fraction(training, mesh)
    bubble_s = (compute_s + inner_s) * idle / (1 - idle)
    backward_s = 2 / 3 * compute_s / count
    outer_s = _data_parallel(shape, training, mesh, kind, compute_s, backward_s)
    optimizer_s = _optimizer(shape, training, mesh, kind)
    total_s = compute_s + inner_s + outer_s + bubble_s + optimizer_s
    flops = training.tokens * shape.training_flops(training.sequence)
    peak = kind.peak["bf16" if training.numbers.products == "fp8" else training.numbers.products]
    return StepTime(
        compute_s,
        inner_s + outer_s,
        bubble_s,
        optimizer_s,
        tokens_per_s=training.tokens / total_s,
        mfu=flops / (total_s * mesh.size * peak),
    )


def bubble_fraction(training: Training, mesh: Mesh) -> float:
    """The share of a pipeline's time that a stage waits; forward, input gradient and weight gradient take alike.

    (p - 1)/(m + p - 1) for GPipe and 1F1B (arXiv 2104.04473), with v·m instead of m for v interleaved stages, and with
    3·v·m for zero bubble schedules, which fill the gaps with weight gradients (arXiv 2401.10241). torch's own schedule
    tables give the same: 27.3, 15.8 and 5.9 % for p = 4, m = 8, v = 2.
    """
    slots = training.micro_batches(mesh)
    if training.schedule in ("interleaved", "zero_bubble"):
        slots *= training.stages
    if training.schedule == "zero_bubble":
        slots *= 3
    return (mesh.pp - 1) / (slots + mesh.pp - 1)


def _stage_compute(shape: ModelShape, training: Training, mesh: Mesh, kind: Hardware, stage: int) -> float:
    """Seconds of one micro-batch's forward and backward passes on a rank of ``stage``."""
    tokens = training.micro_batch * training.sequence / mesh.cp / mesh.tp
    layers = layers_of(shape, mesh.pp, stage)
    seconds = layers * _layer_compute(shape, training, kind)
    if stage == mesh.pp - 1:
        wide = "bf16" if training.numbers.products == "fp8" else training.numbers.products
        seconds += 6 * shape.vocabulary_parameters / kind.sustained_flops(wide)
        seconds += 3 * shape.vocab_size * FP32 / _bandwidth(kind)
    weights_s = layers * shape.layer_products / mesh.tp * _weight_traffic(training) / _bandwidth(kind)
    return tokens * seconds + weights_s


def _bandwidth(kind: Hardware) -> float:
    return MEMORY_SHARE * kind.memory_bandwidth


def _weight_traffic(training: Training) -> float:
    """Bytes of one weight for a micro-batch under autocast: it is cast; its gradient is cast back and added."""
    numbers = training.numbers
    return (FP32 + numbers.cast) + (numbers.cast + FP32) + 3 * FP32 if numbers.cast else 0.0


def _layer_compute(shape: ModelShape, training: Training, kind: Hardware) -> float:
    """Seconds of a layer for one token, forward and backward, what is recomputed included.

    Attention's backward pass makes the scores again: five products for the two of its forward pass.
    """
    products, again = training.numbers.products, RECOMPUTED[training.checkpointing]
    rate = kind.sustained_flops(products) * (FP8_SHARE if products == "fp8" else 1.0)
    wide = kind.sustained_flops("bf16" if products == "fp8" else products) * ATTENTION_SHARE
    products_s = 2 * shape.layer_products * (2 + training.trained + again.products) / rate
    attention_s = shape.attention_flops(training.sequence) * (3.5 + again.attention) / wide
    traffic = (3 + again.elementwise) * _traffic(shape, training)
    traffic += (3 + again.products) / 3 * _casts(shape, training)
    return products_s + attention_s + traffic / _bandwidth(kind)


def _traffic(shape: ModelShape, training: Training) -> float:
    """Bytes of elementwise operations of a layer for one token, forward: two norms and two sums, rotation, SwiGLU; and
    of block attention's scores, which are scaled and go through the softmax. Backward twice as much.
    """
    numbers = training.numbers
    stream = 5 * shape.hidden_size * (numbers.stream + numbers.number)
    inside = (2 * (shape.query_size + shape.kv_size) + 3 * shape.intermediate_size) * numbers.number
    elementwise = (stream + inside) * (1.0 if training.compiled else EAGER_TRAFFIC)
    return elementwise + (4 * probabilities(shape, training) if keeps_probabilities(training) else 0.0)


def _casts(shape: ModelShape, training: Training) -> float:
    """Bytes of making fp8 of what goes into a layer's products, forward and backward, for one token.

    bf16 is read for its largest value and once more to be cast; fp8 is written as it is and transposed: 6 bytes.
    """
    if training.numbers.products != "fp8":
        return 0.0
    forward = 3 * shape.hidden_size + shape.intermediate_size
    backward = shape.query_size + 2 * shape.kv_size + 2 * shape.hidden_size + 2 * shape.intermediate_size
    return 6.0 * (forward + backward)


def _tensor_parallel(shape: ModelShape, training: Training, mesh: Mesh, kind: Hardware) -> float:
    """Seconds of one micro-batch: with sequence parallelism (arXiv 2205.05198, section 4.2.2), each of a layer's two
    blocks gathers the stream and scatters its sums, forward and backward, and gathers once more for the weights'
    gradients. With context parallelism, keys and values travel around the ring as well."""
    layers, n = layers_of(shape, mesh.pp, 0), training.micro_batch * training.sequence / mesh.cp
    seconds, number = 0.0, training.numbers.number
    if mesh.tp > 1:
        moved = (
            RECOMPUTED[training.checkpointing].collectives * n * shape.hidden_size * number * (mesh.tp - 1) / mesh.tp
        )
        exposed = 1 - HIDDEN_TP if training.async_tp else 1.0
        seconds += exposed * moved / kind.bandwidth(mesh.tp, 1)
    if mesh.cp > 1:
        ring = 3 * 2 * n * shape.kv_size / mesh.tp * number * (mesh.cp - 1)
        attention_s = n / mesh.tp * 3.5 * shape.attention_flops(training.sequence) / kind.sustained_flops("bf16")
        seconds += max(0.0, ring / kind.bandwidth(mesh.cp, mesh.stride("cp")) - attention_s)
    return layers * seconds


def _point_to_point(shape: ModelShape, training: Training, mesh: Mesh, kind: Hardware) -> float:
    """Seconds of one micro-batch: the stream to the next stage and its gradient back, once per stage of a rank."""
    if mesh.pp == 1:
        return 0.0
    n = training.micro_batch * training.sequence / mesh.cp / mesh.tp
    chunks = training.stages if training.schedule in ("interleaved", "zero_bubble") else 1
    moved = 2 * chunks * n * shape.hidden_size * training.numbers.number
    seconds = moved / (kind.inter_bandwidth if mesh.size > kind.per_node else kind.intra_bandwidth)
    return seconds if not kind.overlap or chunks == 1 else seconds / 2


def _data_parallel(
    shape: ModelShape, training: Training, mesh: Mesh, kind: Hardware, compute_s: float, backward_s: float
) -> float:
    """Seconds of a step that sums of gradients and gathering of weights take beyond the computation they hide behind.

    fsdp gathers the weights for each forward and backward pass and scatters the gradients' sums after each (in a
    pipeline all of it once a step); dp sums what is left of them behind the last backward pass, 2(n - 1)/n of their
    bytes.
    """
    numbers = training.numbers
    whole = max(stage_parameters(shape, mesh, stage) for stage in {0, mesh.pp - 1})
    passes = training.micro_batches(mesh) if mesh.pp == 1 else 1
    gathers_s = sums_s = 0.0
    if mesh.fsdp > 1:
        share = (mesh.fsdp - 1) / mesh.fsdp / kind.bandwidth(mesh.fsdp, mesh.stride("fsdp"))
        gathers_s = whole * gathered_bytes(training) * (2 * passes if mesh.pp == 1 else 1) * share
        gathers_s += whole * numbers.gradient * training.trained * (passes - 1) * share
        sums_s = whole * numbers.gradient * training.trained * share
    if mesh.dp > 1:
        share = 2 * (mesh.dp - 1) / mesh.dp / kind.bandwidth(mesh.dp, mesh.stride("dp"))
        sums_s += whole / mesh.fsdp * numbers.gradient * training.trained * share
    if not kind.overlap:
        return gathers_s + sums_s
    return max(0.0, gathers_s + sums_s - compute_s, sums_s - backward_s)


def _optimizer(shape: ModelShape, training: Training, mesh: Mesh, kind: Hardware) -> float:
    """Seconds of clipping (gradients read twice, written once) and the update: every number read and written once."""
    numbers = training.numbers
    held = max(stage_parameters(shape, mesh, stage) for stage in {0, mesh.pp - 1}) / mesh.fsdp * training.trained
    state = 2 * (FP32 * OPTIMIZERS[training.optimizer] + numbers.master + numbers.weight)
    return held * (state + 4 * numbers.gradient) / _bandwidth(kind)
