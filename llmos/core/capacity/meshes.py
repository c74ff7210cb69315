"""Which meshes a model can be trained on, how fast each is, and what would fit when none does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from llmos.core.capacity.hardware import GB, Hardware
from llmos.core.capacity.memory import Memory, training_memory
from llmos.core.capacity.settings import CHECKPOINTING, Mesh, Training
from llmos.core.capacity.shape import ModelShape
from llmos.core.capacity.time import StepTime, step_time
from llmos.errors import UsageError

USABLE = 0.92
"""Of an accelerator's memory: the rest is its context, buffers of NCCL and cuBLAS, and fragmentation."""
MORE_RANKS = 64
"""How many times the ranks that were asked for are tried before nothing is said to fit."""
SHORTEST = 128
"""Tokens of the shortest sequence that is proposed where a longer one does not fit."""

_NOTHING = "nothing that was tried: use a smaller model, or more memory for each rank"

Allowed = Callable[[Mesh], bool]
MicroBatches = Callable[[Mesh], Iterable[int]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to train: a mesh with its micro-batch and checkpointing, what a rank holds, and how long a step takes."""

    mesh: Mesh
    training: Training
    memory: Memory
    time: StepTime


def meshes(shape: ModelShape, batch: int, ranks: int, per_node: int) -> Iterator[Mesh]:
    """Every mesh of ``ranks`` ranks that splits the model and the batch: tp divides the heads and stays on a node,
    each pipeline stage has a layer (stages may differ by one), and the batch divides among dp × fsdp."""
    for tp in _divisors(ranks):
        if shape.num_heads % tp or shape.num_kv_heads % tp or tp > per_node:
            continue
        for pp in _divisors(ranks // tp):
            data = ranks // tp // pp
            if pp > shape.num_layers or batch % data:
                continue
            for fsdp in _divisors(data):
                yield Mesh(data // fsdp, fsdp, tp, pp)


def obstacle(shape: ModelShape, training: Training, mesh: Mesh, kind: Hardware) -> str | None:
    """What keeps ``mesh`` from splitting the model and the batch, in words; None when nothing does.

    Of the meshes without ``cp`` it lets through those that :func:`meshes` gives and whose stages a rank has layers for.
    """
    stages = mesh.pp * training.stages if mesh.pp > 1 else 1
    rows = training.sequence % (2 * mesh.cp) if mesh.cp > 1 else 0
    reasons = (
        (shape.num_heads % mesh.tp, f"tp {mesh.tp} does not divide the {shape.num_heads} heads"),
        (shape.num_kv_heads % mesh.tp, f"tp {mesh.tp} does not divide the {shape.num_kv_heads} key and value heads"),
        (mesh.tp > kind.per_node, f"tp {mesh.tp} is more than the {kind.per_node} × {kind.kind} of a node"),
        (stages > shape.num_layers, f"{stages} stages are more than the {shape.num_layers} layers"),
        (training.batch % mesh.data, f"a batch of {training.batch} does not divide by dp × fsdp = {mesh.data}"),
        (training.batch // mesh.data < mesh.pp, f"pp {mesh.pp} has {training.batch // mesh.data} sequences to work on"),
        (rows, f"cp {mesh.cp} does not divide the {training.sequence} tokens of a sequence in two halves each"),
    )
    return next((why for wrong, why in reasons if wrong), None)


def candidates(
    shape: ModelShape,
    training: Training,
    ranks: int,
    kind: Hardware,
    *,
    micro_batches: MicroBatches | None = None,
    checkpointing: Sequence[str] = (),
    allowed: Allowed = lambda mesh: True,
    only: Mesh | None = None,
) -> list[Candidate]:
    """The best way to use each feasible mesh, fastest first: of micro-batches that are as fast, the largest.

    ``micro_batches`` (of a mesh) and ``checkpointing`` are what may be chosen: by default every divisor of a rank's
    sequences, and what ``training`` says. ``only`` is the one mesh to look at, else it is every one of ``ranks`` ranks.
    The batch of a step never changes, and a pipeline has a micro-batch for each stage. Empty when nothing fits.
    """
    found = []
    for mesh in filter(allowed, [only] if only else meshes(shape, training.batch, ranks, kind.per_node)):
        if obstacle(shape, training, mesh, kind):
            continue
        sizes = micro_batches(mesh) if micro_batches else _divisors(training.batch // mesh.data)
        ways = _ways(training, sizes, checkpointing or (training.checkpointing,), mesh)
        fitting = [way for way in ways if fits(training_memory(shape, way, mesh), kind)]
        if fitting:
            found.append(min((_candidate(shape, way, mesh, kind) for way in fitting), key=_preference))
    return sorted(found, key=_slowness)


def recommend(
    shape: ModelShape, training: Training, ranks: int, kind: Hardware, allowed: Allowed = lambda mesh: True
) -> Candidate:
    """The fastest of :func:`candidates`. Raises :func:`refusal` when there is none."""
    found = candidates(shape, training, ranks, kind, allowed=allowed)
    if not found:
        raise refusal(shape, training, ranks, kind, allowed)
    return found[0]


def refusal(
    shape: ModelShape, training: Training, ranks: int, kind: Hardware, allowed: Allowed = lambda mesh: True
) -> UsageError:
    """Says that ``training`` does not fit, how much it takes, and what would fit."""
    least = least_memory(shape, training, ranks, kind, allowed)
    needed = f"it takes at least {least.total / GB:.1f} GB on each" if least else "no mesh of that many divides it"
    return UsageError(
        f"this does not fit on {ranks} × {kind.kind} with {kind.memory_bytes * USABLE / GB:.1f} GB of memory to use: "
        f"{needed}",
        hint=f"What would fit: {would_fit(shape, training, ranks, kind, allowed) or _NOTHING}.",
        param="mesh",
    )


def largest_micro_batch(shape: ModelShape, training: Training, mesh: Mesh, kind: Hardware) -> int | None:
    """The largest micro-batch that fits and divides a rank's sequences, so that the batch stays exact; None if none."""
    sizes = reversed(_divisors(training.batch // mesh.data)) if training.batch % mesh.data == 0 else iter(())
    return next((n for n in sizes if fits(training_memory(shape, training.with_micro_batch(n), mesh), kind)), None)


def fits(memory: Memory, kind: Hardware) -> bool:
    """Whether a rank of ``kind`` has room for ``memory``."""
    return memory.total <= kind.memory_bytes * USABLE


def least_memory(shape: ModelShape, training: Training, ranks: int, kind: Hardware, allowed: Allowed) -> Memory | None:
    """The smallest a rank can be on any mesh of ``ranks`` ranks; None when none divides the model and the batch."""
    smallest = training.with_micro_batch(1)
    every = (
        training_memory(shape, smallest, mesh)
        for mesh in filter(allowed, meshes(shape, training.batch, ranks, kind.per_node))
        if not obstacle(shape, smallest, mesh, kind)
    )
    return min(every, key=lambda memory: memory.total, default=None)


def would_fit(shape: ModelShape, training: Training, ranks: int, kind: Hardware, allowed: Allowed) -> str:
    """The smallest changes that make it fit, in words: another micro-batch or mesh, checkpointing, more ranks."""
    if ways := candidates(shape, training, ranks, kind, allowed=allowed):
        return f"mesh {ways[0].mesh} with micro-batches of {ways[0].training.micro_batch}"
    found = []
    for mode in CHECKPOINTING[CHECKPOINTING.index(training.checkpointing) + 1 :]:
        less = dataclasses.replace(training, checkpointing=mode)
        if ways := candidates(shape, less, ranks, kind, allowed=allowed):
            found.append(f"{mode} activation checkpointing (mesh {ways[0].mesh})")
            break
    for more in _doubled(ranks, training.batch):
        if ways := candidates(shape, training, more, kind, allowed=allowed):
            found.append(f"{more} × {kind.kind} (mesh {ways[0].mesh})")
            break
    if not found and (shorter := _shorter(shape, training, ranks, kind, allowed)):
        found.append(f"sequences of {shorter:,} tokens with full activation checkpointing")
    return ", or ".join(found)


def _shorter(shape: ModelShape, training: Training, ranks: int, kind: Hardware, allowed: Allowed) -> int | None:
    """The longest sequence that fits, of those that are a half, a quarter, … as long; None when none does."""
    length = training.sequence // 2
    while length >= SHORTEST:
        less = dataclasses.replace(training, sequence=length, checkpointing="full")
        if candidates(shape, less, ranks, kind, allowed=allowed):
            return length
        length //= 2
    return None


def _ways(training: Training, sizes: Iterable[int], modes: Sequence[str], mesh: Mesh) -> Iterator[Training]:
    for size in sizes:
        if training.batch < size * mesh.data * mesh.pp:  # fewer micro-batches than stages
            continue
        for mode in modes:
            yield dataclasses.replace(training, micro_batch=size, checkpointing=mode)


def _candidate(shape: ModelShape, training: Training, mesh: Mesh, kind: Hardware) -> Candidate:
    memory = training_memory(shape, training, mesh)
    return Candidate(mesh, training, memory, step_time(shape, training, mesh, kind))


def _preference(way: Candidate) -> tuple[float, int, float]:
    """Orders the ways to use one mesh."""
    return (float(f"{way.time.total_s:.3e}"), -way.training.micro_batch, way.memory.total)


def _slowness(way: Candidate) -> tuple[float, float, Mesh]:
    """Orders by time; what takes the same (to a thousandth) by how much memory it leaves."""
    return (float(f"{way.time.total_s:.3e}"), way.memory.total, way.mesh)


def _doubled(ranks: int, batch: int) -> Iterator[int]:
    more = 2 * ranks
    while more <= min(MORE_RANKS * ranks, 8 * batch):
        yield more
        more *= 2


@lru_cache(1024)
def _divisors(number: int) -> tuple[int, ...]:
    """Smallest first. Remembered: a search asks for those of a few numbers thousands of times."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return tuple(sorted({*small, *(number // n for n in small)}))
