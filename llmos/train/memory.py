"""What to say when a rank runs out of memory: how much there is, and what would fit."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import psutil
import torch

from llmos.core import capacity
from llmos.core.capacity import Hardware, ModelShape
from llmos.errors import OutOfMemoryError, UsageError
from llmos.models import ModelConfig
from llmos.parallel.world import World
from llmos.spec import Mesh, TrainJob
from llmos.train.precision import compute_dtype
from llmos.train.start import shape
from llmos.train.step import default_rows, rank_mesh

_WORDS = ("can't allocate memory", "not enough memory", "cannot allocate memory", "out of memory")
"""Of torch's allocators, in lower case: on a CPU they raise a RuntimeError."""
_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_LESS = 0.95
"""What is proposed must take less than this share of what did not fit, whatever the estimates say."""


def is_exhausted(error: BaseException) -> bool:
    """Whether ``error`` says that there is no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(word in str(error).lower() for word in _WORDS)


def explained(error: BaseException, job: TrainJob, base_model: Path | None, world: World) -> OutOfMemoryError:
    """The error to raise in the place of ``error``, with what would fit as its hint."""
    has_bytes = memory_bytes(job, world)
    detail = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    what = f"rank {world.rank} is out of memory ({detail}): it may use {has_bytes / 2**30:.1f} GiB"
    try:
        hint = what_fits(job, ModelConfig.load(base_model) if base_model else shape(job), world, has_bytes)
    except UsageError:  # the mesh does not even go with the ranks
        hint = "Use a smaller micro_batch_size, activation_checkpointing, or a mesh of more ranks."
    return OutOfMemoryError(what, hint=hint)


def what_fits(job: TrainJob, config: ModelConfig, world: World, has_bytes: float) -> str:
    """In words: the micro-batch, the activation checkpointing, the mesh that fit into ``has_bytes`` on each rank.

    By the capacity model (docs/capacity.md), and only what takes less than what ``job`` does now.
    """
    model, mesh = ModelShape.of(config), rank_mesh(job, world)
    ways = capacity.Mesh(mesh.dp, mesh.fsdp, mesh.tp, mesh.pp)
    share = len(mesh.share(job.batch_size))
    now = capacity.Training(
        batch=job.batch_size,
        micro_batch=min(share, job.micro_batch or default_rows(share, job.sequence_length, mesh)),
        sequence=job.sequence_length,
        precision=_precision(job, world.device),
        optimizer=job.optimizer.name,
        checkpointing=job.activation_checkpointing,
        schedule=job.pipeline.schedule,
        stages=job.pipeline.stages_per_rank,
        compiled=job.compile,
        cpu=world.device.type == "cpu",
    )
    takes_bytes = capacity.training_memory(model, now, ways).total
    kind = _hardware(world.device, min(has_bytes, _LESS * takes_bytes / capacity.USABLE))

    def allowed(other: capacity.Mesh) -> bool:
        return _accepted(job, other)

    fitting = list(_on_this_mesh(model, now, ways, kind))
    if others := capacity.would_fit(model, now, world.size, kind, allowed):
        fitting.append(others)
    listed = ", or ".join(fitting) or "nothing that was tried: use a smaller model, a shorter sequence, more ranks"
    return f"What would fit: {listed}."


def memory_bytes(job: TrainJob, world: World) -> float:
    """How much memory this rank may use: its GPU's; what the job reserves; else its share of the machine's."""
    if world.device.type == "cuda":
        return float(torch.cuda.get_device_properties(world.device).total_memory)
    if job.resources.memory:
        return float(job.resources.memory)
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    machine = min(psutil.virtual_memory().total, float("inf") if text == "max" else int(text))
    return machine / int(os.environ.get("LOCAL_WORLD_SIZE") or world.size)


def _on_this_mesh(model: ModelShape, now: capacity.Training, mesh: capacity.Mesh, kind: Hardware) -> list[str]:
    """The largest micro-batch that fits, with each kind of activation checkpointing from the present one on."""
    found = []
    for mode in capacity.CHECKPOINTING[capacity.CHECKPOINTING.index(now.checkpointing) :]:
        rows = capacity.largest_micro_batch(model, dataclasses.replace(now, checkpointing=mode), mesh, kind)
        if rows:
            also = "" if mode == now.checkpointing else f" with `activation_checkpointing: {mode}`"
            found.append(f"`micro_batch_size: {rows}`{also}")
    return found


def _precision(job: TrainJob, device: torch.device) -> str:
    return _NAMES[compute_dtype("auto", device)] if job.precision == "auto" else job.precision


def _hardware(device: torch.device, limit_bytes: float) -> Hardware:
    kind = capacity.hardware("H100" if device.type == "cuda" else "CPU")  # only its memory counts here
    return dataclasses.replace(kind, memory_bytes=limit_bytes)


def _accepted(job: TrainJob, mesh: capacity.Mesh) -> bool:
    """Whether ``job`` may name ``mesh``: the rules of specs know what cannot be combined."""
    workers = job.workers.model_copy(update={"min": 1, "max": max(job.workers.max, mesh.size)})
    named = job.model_copy(update={"mesh": Mesh(**dataclasses.asdict(mesh)), "workers": workers})
    return not any(True for rule in job.rules for _ in rule(named))
