"""From a TrainJob to the values that the capacity model decides on, and back to a mesh."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from llmos.control.machine import memory_bytes as machine_memory_bytes
from llmos.control.translate import bundle
from llmos.core import capacity
from llmos.core.capacity import Candidate, Hardware, ModelShape, Training
from llmos.core.placement import place
from llmos.core.types import Gang, Node
from llmos.models import ModelConfig
from llmos.spec import PRESETS, Mesh, TrainJob

MICRO_BATCH_TOKENS = {"CPU": 1024, "GPU": 16384}
PARTS_PER_STAGE = 4
"""What a rank's forward pass takes unless the job says how many sequences, as in train/step.py, which needs torch."""
ASSUMED_GPU = "H100"
"""The kind that a job's GPUs are taken for when nothing says which they are."""


def model_shape(job: TrainJob, base_model: Path | None = None) -> ModelShape:
    """The shape that ``job`` trains; ``base_model`` is the directory of ``job.model.ref``. Raises ModelError.

    A model with fresh weights has the vocabulary of the tokenizer that is trained for it.
    """
    if job.model.preset:
        return ModelShape.of(PRESETS[job.model.preset], vocab_size=job.data.vocab_size)
    if base_model is not None:
        return ModelShape.of(ModelConfig.load(base_model))
    return ModelShape.of(ModelConfig.load(str(job.model.config)), vocab_size=job.data.vocab_size)


def training_of(job: TrainJob, shape: ModelShape) -> Training:
    """How ``job`` trains a model of ``shape``, in the terms of the capacity model; on one rank."""
    device = _device(job)
    return Training(
        batch=job.batch_size,
        micro_batch=_rows(job, capacity.Mesh()),
        sequence=job.sequence_length,
        precision=_automatic(device) if job.precision == "auto" else job.precision,
        optimizer=job.optimizer.name,
        checkpointing=job.activation_checkpointing,
        schedule=job.pipeline.schedule,
        stages=job.pipeline.stages_per_rank,
        compiled=job.compile,
        cpu=device == "CPU",
        trained=_adapters(job, shape) / shape.num_parameters if job.lora else 1.0,
    )


def hardware_of(job: TrainJob, nodes: Iterable[Node] = ()) -> Hardware:
    """What one rank of ``job`` computes on, and beside how many others: as many as one of ``nodes`` can hold.

    Without ``resources.memory``, nothing bounds the memory of a CPU's rank; a micro-batch that is to be as large as
    fits then has this machine's, shared by all ranks.
    """
    kind = capacity.hardware(ASSUMED_GPU if job.resources.gpus else "CPU")
    kind = dataclasses.replace(kind, per_node=_ranks_per_node(job, nodes) or kind.per_node)
    if job.resources.gpus:
        return kind
    everything = machine_memory_bytes() / job.placed_mesh.size if job.micro_batch_size == "auto" else math.inf
    memory = job.resources.memory or everything
    return dataclasses.replace(kind, memory_bytes=memory)


def ways(job: TrainJob, shape: ModelShape, kind: Hardware) -> list[Candidate]:
    """The meshes that ``job`` may run on: the one it names, or all of ``workers.min`` ranks that it could name.

    The fastest comes first, after data parallelism alone: that asks least of the network between ranks, and where whole
    copies fit it needs none of what else could go wrong. Raises UsageError that says what would fit when nothing does.
    """
    training = training_of(job, shape)
    wanted = None if job.mesh == "auto" else core_mesh(job.mesh)
    ranks = job.workers.min if wanted is None else wanted.size

    def allowed(mesh: capacity.Mesh) -> bool:
        return _accepted(job, mesh) if wanted is None else mesh == wanted

    found = capacity.candidates(
        *(shape, training, ranks, kind),
        micro_batches=lambda mesh: [_largest(job, shape, training, kind, mesh) or _rows(job, mesh)],
        allowed=allowed,
    )
    if not found:
        raise capacity.refusal(shape, training, ranks, kind, lambda mesh: _accepted(job, mesh))
    return sorted(found, key=lambda way: way.mesh.dp < way.mesh.size)


def placed(job: TrainJob, base_model: Path | None = None, nodes: Iterable[Node] = ()) -> TrainJob:
    """``job`` with the first of its :func:`ways` in the place of ``mesh: auto`` and ``micro_batch_size: auto``.

    ``nodes`` are those of the cluster: ranks of a tensor-parallel group share one. Where each rank has a GPU and a copy
    of the model, ``auto`` stays: the ranks try what fits (train/micro_batch.py). Raises UsageError, ModelError.
    """
    if "auto" not in (job.mesh, job.micro_batch_size):
        return job
    kind = hardware_of(job, nodes if job.mesh == "auto" else ())
    way = ways(job, model_shape(job, base_model), kind)[0]
    placed = job.model_copy(update={"mesh": spec_mesh(way.mesh)} if job.mesh == "auto" else {})
    if job.micro_batch_size != "auto" or (job.resources.gpus and way.mesh.dp == way.mesh.size):
        return placed
    return placed.model_copy(update={"micro_batch_size": way.training.micro_batch})


def core_mesh(mesh: Mesh) -> capacity.Mesh:
    """The mesh of a spec, in the terms of the capacity model."""
    return capacity.Mesh(mesh.dp, mesh.fsdp, mesh.tp, mesh.pp, mesh.cp)


def spec_mesh(mesh: capacity.Mesh) -> Mesh:
    """The mesh of the capacity model, as a spec says it."""
    return Mesh(**dataclasses.asdict(mesh))


def _accepted(job: TrainJob, mesh: capacity.Mesh) -> bool:
    """Whether ``job`` may name ``mesh``: the rules of specs know what cannot be combined. ``workers`` are not asked."""
    workers = job.workers.model_copy(update={"min": 1, "max": max(job.workers.max, mesh.size)})
    named = job.model_copy(update={"mesh": spec_mesh(mesh), "workers": workers})
    return not any(True for rule in job.rules for _ in rule(named))


def _ranks_per_node(job: TrainJob, nodes: Iterable[Node]) -> int:
    """How many ranks of ``job`` the roomiest node holds when nothing else runs there, as far as they are needed."""
    empty = {node.id: node.total for node in nodes if not node.draining}
    rank = bundle(job.resources)
    return next((n for n in range(job.workers.min, 0, -1) if place(Gang((rank,) * n, together=n), empty)), 0)


def _device(job: TrainJob) -> str:
    return "GPU" if job.resources.gpus else "CPU"


def _largest(job: TrainJob, shape: ModelShape, training: Training, kind: Hardware, mesh: capacity.Mesh) -> int | None:
    """Sequences of the largest forward pass that fits and that ``job`` could name, if that is what it asks for."""
    if job.micro_batch_size != "auto":
        return None
    share = job.batch_size // mesh.data
    for rows in (rows for rows in range(share, 0, -1) if share % rows == 0):
        named = job.model_copy(update={"micro_batch_size": rows})
        if _accepted(named, mesh) and capacity.fits(
            capacity.training_memory(shape, training.with_micro_batch(rows), mesh), kind
        ):
            return rows
    return 1  # which does not fit either: it is refused with what would


def _rows(job: TrainJob, mesh: capacity.Mesh) -> int:
    """Sequences of a forward pass: what the job says, else what the trainer will take (``train.step.default_rows``)."""
    share = max(1, job.batch_size // mesh.data)
    most = min(share, job.micro_batch or max(1, MICRO_BATCH_TOKENS[_device(job)] // job.sequence_length))
    if job.micro_batch or mesh.pp == 1:
        return most
    sizes = [rows for rows in range(1, most + 1) if share % rows == 0]
    whole = [rows for rows in sizes if share // rows % mesh.pp == 0] or sizes
    return max((rows for rows in whole if share // rows >= PARTS_PER_STAGE * mesh.pp), default=1)


def _adapters(job: TrainJob, shape: ModelShape) -> int:
    """Weights of the adapters of all layers: rank · (in + out) of each matrix that gets one."""
    hidden, wide, q, kv = shape.hidden_size, shape.intermediate_size, shape.query_size, shape.kv_size
    ends = {"q_proj": (hidden, q), "k_proj": (hidden, kv), "v_proj": (hidden, kv), "o_proj": (q, hidden)}
    ends |= {"gate_proj": (hidden, wide), "up_proj": (hidden, wide), "down_proj": (wide, hidden)}
    assert job.lora is not None
    return shape.num_layers * job.lora.rank * sum(sum(ends[name]) for name in job.lora.targets)


@cache
def _automatic(device: str) -> str:
    """What ``precision: auto`` comes to: bf16 where the hardware has it, as train/precision.py finds out with torch."""
    if device == "GPU":
        return "bf16"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"
