"""What the capacity model found, as tables for people and JSON for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from llmos.cli.output import columns, duration, fields, size
from llmos.control.estimate import cost_view, way_view
from llmos.core.capacity import Candidate, Hardware, Memory, Mesh, Serving
from llmos.spec import TrainJob

PARTS = ("weights", "gradients", "optimizer", "activations")
"""Of the memory, what the table shows; JSON has all of it."""
TRAINING_HEADER = (
    *("MESH", "MICRO", "RECOMPUTE", "MEMORY"),
    *map(str.upper, PARTS),
    *("STEP", "BUBBLE", "COMM", "MFU", "DAYS", "HOURS", "PRICE"),
)
SERVING_HEADER = (
    *("REPLICAS", "MESH", "ACCELERATORS", "SEQUENCES", "MEMORY", "WEIGHTS", "CACHE"),
    *("FIRST TOKEN", "PER TOKEN", "$/HOUR", "$/M TOKENS"),
)


def training_table(ways: Sequence[Candidate], kind: Hardware, tokens: float) -> str:
    """One line a way."""
    return columns(TRAINING_HEADER, [_training_row(way, cost_view(way, kind, tokens)) for way in ways])


def serving_table(ways: Sequence[Serving]) -> str:
    """One line a way."""
    return columns(SERVING_HEADER, map(_serving_row, ways))


def job_view(job: TrainJob, way: Candidate, kind: Hardware, parameters: int) -> dict[str, Any]:
    """What a job would take (JSON)."""
    return {
        "job": job.name,
        "parameters": parameters,
        "hardware": kind.kind,
        "steps": job.steps,
        "tokens": job.steps * way.training.tokens,
        "train_s": job.steps * way.time.total_s,
        **way_view(way),
    }


def job_table(job: TrainJob, way: Candidate, kind: Hardware, parameters: int) -> str:
    """What a job would take."""
    time, tokens = way.time, job.steps * way.training.tokens
    sequences = f"{job.batch_size} sequences of {job.sequence_length} tokens"
    pairs = [
        ("job", f"{job.name}: {parameters:,} parameters, {way.training.precision}"),
        ("mesh", f"{way.mesh}, on {way.mesh.size} × {kind.kind}"),
        ("batch", f"{sequences}, {way.training.micro_batch} at a time on each rank"),
        ("tokens", f"{tokens:,} in {job.steps:,} steps"),
        ("time", f"{duration(job.steps * time.total_s)}: {time.total_s:.3g} s a step"),
        ("speed", f"{time.tokens_per_s:,.0f} tokens/s"),
        ("memory", f"{size(way.memory.total)} on each rank"),
    ]
    return fields([*pairs, *((f"  {name}", text) for name, text in _parts(way.memory))])


def _parts(memory: Memory) -> list[tuple[str, str]]:
    return [(name, size(amount)) for name, amount in dataclasses.asdict(memory).items() if amount]


def _training_row(way: Candidate, cost: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(way.mesh),
        str(way.training.micro_batch),
        way.training.checkpointing,
        size(way.memory.total),
        *(size(getattr(way.memory, part)) for part in PARTS),
        f"{way.time.total_s:.3g} s",
        f"{way.time.bubble:.1%}",
        f"{way.time.communication_s / way.time.total_s:.1%}",
        f"{way.time.mfu:.0%}",
        f"{cost['days']:.3g}",
        f"{cost['accelerator_hours']:,.0f}",
        _dollars(cost["price"], ",.0f"),
    )


def _serving_row(way: Serving) -> tuple[str, ...]:
    return (
        *map(str, (way.replicas, Mesh(tp=way.tp, pp=way.pp), way.accelerators, way.sequences)),
        *(size(amount) for amount in (way.memory.total, way.memory.weights, way.memory.cache)),
        f"{1000 * way.first_token_s:.0f} ms",
        f"{1000 * way.token_s:.1f} ms",
        _dollars(way.price_per_hour, ".2f"),
        _dollars(way.price_per_million, ".2f"),
    )


def _dollars(amount: float | None, form: str) -> str:
    return "-" if amount is None else f"${amount:{form}}"
