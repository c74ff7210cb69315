"""``estimate_published``: step times that ``core/capacity`` gives, against runs that others have published.

    python -m benchmarks.published            prints the table that docs/capacity.md shows
    python -m benchmarks.published --fit      fits the constants again, to the rows that are not held out

A run is given as its publisher describes it: model, kind and number of GPUs, mesh with its pipeline's schedule,
sequence, batch with its micro-batch, type of numbers, checkpointing, asynchronous tensor parallelism. Nothing that was
measured is given. The column `alone` knows neither of the last two: it recomputes as little as fits, and takes all
tensor parallelism for asynchronous. torchtitan: benchmarks/ of pytorch/torchtitan
(llama3_h100_202412, asyncTP_llama3_h100_2025-06, llama3_8b_h200_2025-06), H100 of 96 GB held to 500 W; with a pipeline,
a step has as many micro-batches as the pipeline has stages, the default of its commit 9dec370. Megatron-Bridge:
docs/performance-summary.md, DGX H100, containers 25.11 and 26.02 (GBS 256 and 1536).
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmos.core.capacity import KINDS, SIZES, Mesh, Training, fits, step_time, training_memory
from llmos.core.capacity import time as step

TOLERANCE = 0.15
LEAST_FIRST = ("none", "alternate", "full")
"""How much is recomputed: what torchtitan calls none, selective (every second product) and full."""


@dataclass(frozen=True, slots=True)
class Run:
    """A published run and its tokens per second on each GPU. ``held_out``: its figure was kept out of the fit."""

    name: str
    kind: str
    size: str
    mesh: Mesh
    training: Training
    tokens_per_s: float
    held_out: bool = False

    @property
    def ratio(self) -> float:
        """Predicted to published tokens per second."""
        return self.predicted(self.training) / self.tokens_per_s

    @property
    def alone(self) -> float | None:
        """The same for the least checkpointing that fits, with asynchronous tensor parallelism; None: nothing fits."""
        for mode in LEAST_FIRST:
            training = dataclasses.replace(self.training, checkpointing=mode, async_tp=self.mesh.tp > 1)
            if fits(training_memory(SIZES[self.size], training, self.mesh), KINDS[self.kind]):
                return self.predicted(training) / self.tokens_per_s
        return None

    def predicted(self, training: Training) -> float:
        """Tokens per second on each GPU that the model of time gives for ``training``."""
        time = step_time(SIZES[self.size], training, self.mesh, KINDS[self.kind])
        return time.tokens_per_s / self.mesh.size


def _run(batch: int, micro_batch: int, precision: str, **more: object) -> Training:
    return dataclasses.replace(
        Training(batch, micro_batch, sequence=8192, precision=precision, compiled=True),
        **more,  # type: ignore[arg-type]
    )


_BF16, _FP8 = "bf16_all", "fp8"
_SELECTIVE = {"checkpointing": "alternate"}
_FULL = {"checkpointing": "full"}
_ASYNC = {"checkpointing": "full", "async_tp": True}
_PIPES = {"schedule": "interleaved", "async_tp": True}
_8B_TP, _70B, _405B = Mesh(fsdp=8, tp=8), Mesh(fsdp=32, tp=8), Mesh(fsdp=8, tp=8, pp=8)
_70B_BRIDGE, _405B_BRIDGE = Mesh(dp=2, tp=4, pp=8), Mesh(dp=8, tp=8, pp=8, cp=2)

RUNS = (
    Run("torchtitan 8B, 8 GPUs", "H100-500W", "8B", Mesh(fsdp=8), _run(16, 2, _BF16, **_SELECTIVE), 6667),
    Run("torchtitan 8B, 8 GPUs, fp8", "H100-500W", "8B", Mesh(fsdp=8), _run(16, 2, _FP8, **_SELECTIVE), 8532),
    Run("torchtitan 8B, 128 GPUs", "H100-500W", "8B", Mesh(fsdp=128), _run(256, 2, _BF16, **_SELECTIVE), 6514),
    Run("torchtitan 8B, 128 GPUs, fp8", "H100-500W", "8B", Mesh(fsdp=128), _run(256, 2, _FP8, **_SELECTIVE), 8380),
    Run("torchtitan 8B, tp 8", "H100-500W", "8B", _8B_TP, _run(96, 12, _BF16, **_SELECTIVE), 4378),
    Run("torchtitan 8B, tp 8, fp8", "H100-500W", "8B", _8B_TP, _run(96, 12, _FP8, **_SELECTIVE), 5078),
    Run("torchtitan 70B", "H100-500W", "70B", _70B, _run(512, 16, _BF16, **_FULL), 597),
    Run("torchtitan 70B, async tp", "H100-500W", "70B", _70B, _run(512, 16, _BF16, **_ASYNC), 652),
    Run("torchtitan 70B, fp8", "H100-500W", "70B", _70B, _run(512, 16, _FP8, **_FULL), 829),
    Run("torchtitan 70B, fp8, async tp", "H100-500W", "70B", _70B, _run(512, 16, _FP8, **_ASYNC), 876),
    Run("torchtitan 405B, fp8, 1F1B", "H100-500W", "405B", _405B, _run(256, 4, _FP8, **_ASYNC), 100, held_out=True),
    Run(
        *("torchtitan 405B, fp8, interleaved", "H100-500W", "405B", _405B),
        _run(256, 4, _FP8, stages=2, **_ASYNC, schedule="interleaved"),
        *(128, True),
    ),
    Run("torchtitan 8B, 32 H200, fp8", "H200", "8B", Mesh(fsdp=32), _run(64, 2, _FP8, **_SELECTIVE), 10938),
    Run("torchtitan 8B, 64 H200, fp8", "H200", "8B", Mesh(fsdp=64), _run(128, 2, _FP8, **_SELECTIVE), 10753),
    Run("Megatron-Bridge 8B, fp8", "H100", "8B", Mesh(fsdp=8), _run(128, 1, _FP8), 14451),
    Run("Megatron-Bridge 70B, fp8", "H100", "70B", _70B_BRIDGE, _run(128, 1, _FP8, stages=5, **_PIPES), 1602, True),
    Run("Megatron-Bridge 70B, GBS 256", "H100", "70B", _70B_BRIDGE, _run(256, 1, _FP8, stages=5, **_PIPES), 1621, True),
    Run("Megatron-Bridge 405B, fp8", "H100", "405B", _405B_BRIDGE, _run(512, 1, _FP8, stages=8, **_PIPES), 292),
    Run("Megatron-Bridge 405B, GBS 1536", "H100", "405B", _405B_BRIDGE, _run(1536, 1, _FP8, stages=8, **_PIPES), 311),
)


def table() -> str:
    """All runs as Markdown: what they are, what was published, and how far off the predictions are."""
    header = ("run", "kind", "GPUs", "mesh", "batch / micro", "how", "published", "predicted", "error", "alone")
    lines = [header, ("---",) * len(header), *map(_row, RUNS)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _row(run: Run) -> tuple[str, ...]:
    training, alone = run.training, run.alone
    pipeline = f", {training.schedule}" + (f" × {training.stages}" if training.stages > 1 else "")
    asynchronous = ", async tp" if training.async_tp else ""
    recompute = "" if training.checkpointing == "none" else f", {_RECOMPUTED[training.checkpointing]}"
    numbers = "fp8" if training.precision == "fp8" else "bf16"
    return (
        run.name.split(",")[0] + (" – **held out**" if run.held_out else ""),
        *(run.kind, str(run.mesh.size), str(run.mesh), f"{training.batch} / {training.micro_batch}"),
        numbers + recompute + asynchronous + (pipeline if run.mesh.pp > 1 else ""),
        *(f"{run.tokens_per_s:,.0f}", f"{run.predicted(training):,.0f}", _percent(run.ratio)),
        "does not fit" if alone is None else _percent(alone),
    )


_RECOMPUTED = {"alternate": "selective", "full": "full"}


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %".replace("-", "−")


def estimate_published() -> Mapping[str, object]:
    """The row: the largest error of all runs, and of those that were held out."""
    worst = max(RUNS, key=lambda run: abs(run.ratio - 1))
    return {
        "name": "estimate_published",
        "value": round(worst.ratio, 3),
        "unit": "predicted / published",
        "must": "0.85 to 1.15",
        "ok": abs(worst.ratio - 1) <= TOLERANCE,
        "cases": [{"case": run.name, "ratio": round(run.ratio, 3), "held_out": run.held_out} for run in RUNS],
    }


def fit() -> dict[str, float]:
    """Each kind's ``sustained`` and the shares of attention and fp8 with the least squared error of logarithms.

    Coordinate descent from what is in place, in steps from 0.04 down to 0.002.
    """
    kinds = ("H100-500W", "H100", "H200")
    point = [*(KINDS[kind].sustained for kind in kinds), step.ATTENTION_SHARE, step.FP8_SHARE]
    best, width = _error(kinds, point), 0.04
    while width > 0.002:
        moved = False
        for i in range(len(point)):
            for change in (-width, width):
                other = [*point[:i], point[i] + change, *point[i + 1 :]]
                if (error := _error(kinds, other)) < best - 1e-9:
                    point, best, moved = other, error, True
        width /= 1 if moved else 2
    return dict(zip((*kinds, "ATTENTION_SHARE", "FP8_SHARE"), (round(x, 3) for x in point), strict=True))


def _error(kinds: Sequence[str], point: Sequence[float]) -> float:
    before = step.ATTENTION_SHARE, step.FP8_SHARE
    step.ATTENTION_SHARE, step.FP8_SHARE = point[-2:]
    try:
        total = 0.0
        for run in RUNS:
            if not run.held_out:
                kind = dataclasses.replace(KINDS[run.kind], sustained=point[kinds.index(run.kind)])
                time = step_time(SIZES[run.size], run.training, run.mesh, kind)
                total += math.log(time.tokens_per_s / run.mesh.size / run.tokens_per_s) ** 2
        return total
    finally:
        step.ATTENTION_SHARE, step.FP8_SHARE = before


if __name__ == "__main__":
    print(table())
    if "--fit" in sys.argv:
        print(fit())
