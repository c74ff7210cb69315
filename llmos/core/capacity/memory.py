"""Bytes that one rank holds at the peak of a training step, or of serving.

Activations are counted tensor by tensor as ``models/transformer.py`` keeps them for the backward pass, in the manner of
Korthikanti et al. (arXiv 2205.05198, section 4) but for SwiGLU, grouped keys and values and RMS norms. docs/capacity.md
writes the formulas out. n is the number of tokens of a micro-batch on a rank.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

from llmos.core.capacity.settings import BLOCK_ATTENTION_TOKENS, OPTIMIZERS, Mesh, Training
from llmos.core.capacity.shape import ModelShape

FP32 = 4
GATHERED_LAYERS = 2
"""FSDP2 gathers a layer while the one before it is in use."""
HELD = 0.18
"""Of what comes and goes in a step, glibc's malloc holds as much again in gaps (benchmarks/memory_rows.py)."""
SHORT, SHORT_BLOCK, BLOCK = 512, 32, 64
"""Queries of a block of block attention, up to SHORT tokens and above (models/block_attention.py)."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one rank. ``copies``: weights a second time, in the type of the products – what autocast has cast, or
    the layers that fsdp has gathered. ``cache``: keys and values of the sequences that are served. ``allocator``: what
    it holds of the system and no tensor has."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    copies: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    communication: float = 0.0
    cache: float = 0.0
    allocator: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(getattr(self, field.name) for field in fields(self)))


def training_memory(shape: ModelShape, training: Training, mesh: Mesh) -> Memory:
    """The fullest rank's bytes: with a pipeline, the stage that holds most."""
    stages = (_stage_memory(shape, training, mesh, stage) for stage in sorted({0, mesh.pp - 1}))
    return max(stages, key=lambda memory: memory.total)


def serving_memory(
    shape: ModelShape,
    sequences: int,
    context: int,
    number: int = 2,
    tp: int = 1,
    *,
    pp: int = 1,
    weight: float | None = None,
) -> Memory:
    """Bytes of the fullest of tp × pp ranks that serve ``sequences`` sequences of ``context`` tokens at once.

    ``number`` is the bytes of a number, ``weight`` those of a weight in the layers' matrices, if it is another.
    """
    mesh, saved = Mesh(tp=tp, pp=pp), number - (weight or number)
    widest = max(2 * shape.intermediate_size, shape.query_size + 2 * shape.kv_size) + 2 * shape.hidden_size

    def held(stage: int) -> Memory:
        layers = layers_of(shape, pp, stage)
        return Memory(
            weights=stage_parameters(shape, mesh, stage) * number - layers * shape.layer_products * saved / tp,
            activations=context * widest * number / tp,  # one prompt of full length is read at a time
            logits=sequences / pp * shape.vocab_size * (FP32 + number) / tp if stage == pp - 1 else 0.0,
            cache=2 * layers * shape.kv_size * number * sequences * context / tp,
        )

    return max(map(held, sorted({0, pp - 1})), key=lambda memory: memory.total)


@lru_cache(4096)
def layers_of(shape: ModelShape, stages: int, stage: int) -> int:
    """Layers of one of ``stages`` stages, as parallel/stage.py splits them: so that the slowest does least.

    The last one has the output matrix besides, which counts as so many layers as it has their multiplications.
    """
    if stages == 1:
        return shape.num_layers
    output = shape.vocabulary_parameters / shape.layer_parameters

    def slowest(last: int) -> tuple[float, int]:
        return max(-(-(shape.num_layers - last) // (stages - 1)), last + output), -last

    last = min(range(1, shape.num_layers - stages + 2), key=slowest)
    if stage == stages - 1:
        return last
    rest = shape.num_layers - last
    return -(-rest * (stage + 1) // (stages - 1)) - -(-rest * stage // (stages - 1))


def stage_parameters(shape: ModelShape, mesh: Mesh, stage: int) -> float:
    """Weights that the stage's ranks hold together with their fsdp group, that is before fsdp shards them."""
    first, last = stage == 0, stage == mesh.pp - 1
    matrices = first + (last and not (first and shape.tie_embeddings))
    inside = layers_of(shape, mesh.pp, stage) * shape.layer_parameters
    return (inside + matrices * shape.vocabulary_parameters + last * shape.hidden_size) / mesh.tp


def layer_activations(shape: ModelShape, training: Training) -> float:
    """Bytes that a layer without checkpointing keeps of a token, over all tensor-parallel ranks.

    The stream before each norm; what the norms give to the products; q, k, v, and q and k before their norm where there
    is one; the attention's probabilities or its output; what goes into o; gate, silu(gate), up and their product.
    """
    number, stream = training.numbers.number, training.numbers.stream
    norms = 2 * shape.hidden_size * (stream + number) + 2 * FP32
    attention = (2 * shape.query_size + 2 * shape.kv_size) * number
    if shape.qk_norm:
        attention += (shape.query_size + shape.kv_size) * number + (shape.num_heads + shape.num_kv_heads) * FP32
    return norms + attention + _kept_by_attention(shape, training) + 4 * shape.intermediate_size * number


def kept_activations(shape: ModelShape, training: Training) -> float:
    """Bytes that a layer keeps of a token until its backward pass, under :attr:`Training.checkpointing`.

    full: the stream before the layer. selective: that and the products' outputs; alternate: half of those, and the
    attention's output.
    """
    number, stream = training.numbers.number, training.numbers.stream * shape.hidden_size
    if training.checkpointing == "none":
        return layer_activations(shape, training)
    if training.checkpointing == "full":
        return float(stream)
    products = shape.query_size + 2 * shape.kv_size + 2 * shape.hidden_size + 2 * shape.intermediate_size
    if training.checkpointing == "selective":
        return float(stream + products * number)
    return stream + (products / 2 + shape.query_size) * number


def in_flight(training: Training, mesh: Mesh, stage: int = 0) -> float:
    """Micro-batches whose activations a stage holds at once.

    GPipe: all. 1F1B and zero bubble: as many as there are stages from here on. Interleaved: (p - 1)/v more on the first
    stage (Narayanan et al., arXiv 2104.04473, section 2.2; Korthikanti et al., section 4.2.3).
    """
    count, behind = training.micro_batches(mesh), mesh.pp - stage
    if mesh.pp > 1 and training.schedule == "gpipe":
        return count
    more = (mesh.pp - 1) / training.stages if training.schedule == "interleaved" else 0.0
    return min(count, behind + more)


def _stage_memory(shape: ModelShape, training: Training, mesh: Mesh, stage: int) -> Memory:
    numbers, layers = training.numbers, layers_of(shape, mesh.pp, stage)
    tokens = training.micro_batch * training.sequence / mesh.cp
    whole = stage_parameters(shape, mesh, stage)
    held = whole / mesh.fsdp
    kept = layers * kept_activations(shape, training) * in_flight(training, mesh, stage)
    again = layer_activations(shape, training) - kept_activations(shape, training)  # while a layer is recomputed
    moving = _backward_transients(shape, training)
    last = stage == mesh.pp - 1
    vocabulary = _logits(shape, training, mesh, tokens) if last else 0.0
    beyond = tokens * (again + moving) / mesh.tp + _gradient_transients(shape, training, mesh)
    copies = _copies(shape, training, mesh, layers)
    activations = tokens * (kept + last * _final_norm(shape, training)) / mesh.tp
    logits = max(vocabulary, beyond)  # one after the other: first the loss, then the backward pass
    sharded = mesh.fsdp > 1 and numbers.master > 0  # then the shards are the fp32 weights, and nothing else is kept
    whole_gradients = whole if mesh.fsdp > 1 and mesh.pp > 1 else 0.0  # until the last micro-batch of a pipeline
    return Memory(
        weights=held * (FP32 if sharded else numbers.weight),
        gradients=(held + whole_gradients) * numbers.gradient * training.trained,
        optimizer=held
        * training.trained
        * (FP32 * OPTIMIZERS[training.optimizer] + (0 if sharded else numbers.master)),
        copies=copies,
        activations=activations,
        logits=logits,
        communication=_buffers(shape, training, mesh, tokens),
        allocator=HELD * (copies + activations + logits) if training.cpu else 0.0,
    )


def _kept_by_attention(shape: ModelShape, training: Training) -> float:
    """Bytes of a token. Block attention: its probabilities; else the output and a number a head."""
    if keeps_probabilities(training):
        return probabilities(shape, training)
    return shape.query_size * training.numbers.number + shape.num_heads * FP32


def keeps_probabilities(training: Training) -> bool:
    """Whether attention is block attention, as for short sequences on CPUs."""
    return training.cpu and training.sequence in BLOCK_ATTENTION_TOKENS


def probabilities(shape: ModelShape, training: Training) -> float:
    """Bytes of a token's probabilities in block attention: the causal half, and half of a block of queries."""
    block = min(SHORT_BLOCK if training.sequence <= SHORT else BLOCK, training.sequence)
    return shape.num_heads * (training.sequence + block) / 2 * training.numbers.number


def _final_norm(shape: ModelShape, training: Training) -> float:
    """Bytes of a token: what the last norm reads and gives, and the derivative of what it gives."""
    return shape.hidden_size * (training.numbers.stream + 2 * training.numbers.number)


def _backward_transients(shape: ModelShape, training: Training) -> float:
    """Bytes of a token while a layer is differentiated: of the stream, and of what goes through the feed-forward."""
    return 2 * shape.hidden_size * training.numbers.stream + shape.intermediate_size * training.numbers.number


def _gradient_transients(shape: ModelShape, training: Training, mesh: Mesh) -> float:
    """Bytes of one matrix's gradient before it is added to the others, in the products' type and in the sum's."""
    numbers = training.numbers
    widest = shape.hidden_size * shape.intermediate_size / mesh.tp
    return widest * (numbers.gradient + (numbers.number if numbers.number != numbers.gradient else 0))


def _logits(shape: ModelShape, training: Training, mesh: Mesh, tokens: float) -> float:
    """Bytes of train/loss.py at its peak: logits of a chunk, the matrix's gradient, and the larger of what comes next.

    The logits exist in fp32, and in bf16 once more; then their derivative is multiplied into a second gradient.
    """
    numbers, matrix = training.numbers, shape.vocabulary_parameters / mesh.tp
    chunk = min(training.logit_tokens, tokens) * shape.vocab_size / mesh.tp
    if numbers.products == "fp32":
        return chunk * FP32 + 2 * matrix * FP32
    return matrix * (FP32 + numbers.number) + max(chunk * (FP32 + 2), chunk * 2 + matrix * numbers.number)


def _copies(shape: ModelShape, training: Training, mesh: Mesh, layers: int) -> float:
    """Bytes of weights beside the weights themselves: what autocast has cast, which the backward pass needs as well,
    and what fsdp has gathered – a layer and the next, in a pipeline all of them, and always what is not in layers."""
    numbers = training.numbers
    cast = layers * shape.layer_products * numbers.cast
    if mesh.fsdp == 1:
        return cast / mesh.tp
    gathered = layers if mesh.pp > 1 else min(GATHERED_LAYERS, layers)
    outside = shape.num_parameters - shape.num_layers * shape.layer_parameters
    return (cast + (gathered * shape.layer_parameters + outside) * gathered_bytes(training)) / mesh.tp


def gathered_bytes(training: Training) -> int:
    """Bytes of a weight as fsdp gathers it: in the type that weights are kept in between steps."""
    return training.numbers.weight


def _buffers(shape: ModelShape, training: Training, mesh: Mesh, tokens: float) -> float:
    """Bytes that travel: a layer's gradients (fsdp), the stream of a micro-batch (tp: gathered; pp: two of them).

    Data-parallel sums happen in the gradients themselves.
    """
    numbers = training.numbers
    stream = tokens * shape.hidden_size * numbers.number
    gradients = shape.layer_parameters / mesh.tp * numbers.gradient if mesh.fsdp > 1 else 0.0
    return gradients + (stream if mesh.tp > 1 else 0.0) + (2 * stream / mesh.tp if mesh.pp > 1 else 0.0)
