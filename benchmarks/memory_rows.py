"""``memory_predicted``: what ``llmos train --dry-run`` says a rank will hold, against what training holds.
``memory_fsdp4``: what each of four fsdp ranks holds of weights, gradients and optimizer, against one rank alone.

Each case of the former trains in a process of its own (``python -m llmos.train``, one thread) until a few steps are
done; the kernel says what its resident memory was at most (VmHWM). Python, torch, what oneDNN compiles for the shapes
of a sequence, and the corpus are not what is predicted: a model of 200 thousand parameters trained in the same
precision on one sequence of the same length is the baseline that both sides are taken relative to.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from benchmarks.ranks import on_ranks
from benchmarks.rows import Measured, Options
from llmos.control.capacity import model_shape, training_of
from llmos.core.capacity import Mesh, training_memory
from llmos.models import ModelConfig, Transformer
from llmos.parallel.gradients import Gradients
from llmos.parallel.mesh import RankMesh
from llmos.parallel.model import Layout, SpreadModel
from llmos.parallel.stage import Numerics
from llmos.parallel.world import World
from llmos.spec import PRESETS, TrainJob, parse
from llmos.spec import Optimizer as OptimizerSpec
from llmos.train.loss import cross_entropy_sum
from llmos.train.optimizer import Optimizer

MEASURED_STEPS = 2
"""The optimizer's state exists from the end of the first step on, so the second one is the first at the peak."""
TIMEOUT_S = 1800.0
FSDP = 4


@dataclass(frozen=True, slots=True)
class Case:
    """A preset in a precision, in micro-batches of some sequences."""

    preset: str
    precision: str
    micro_batch: int
    sequence: int

    @property
    def baseline(self) -> Case:
        """The least that trains in this precision on sequences of this length."""
        return Case("nano", self.precision, 1, self.sequence)

    def job(self, data: Path) -> TrainJob:
        """The case as a job that would train for ever and never saves."""
        spec = parse(
            {
                "kind": "TrainJob",
                "name": f"{self.preset}-{self.precision}-{self.micro_batch}x{self.sequence}",
                "model": {"preset": self.preset},
                "data": {"path": str(data), "vocab_size": 2048},
                "steps": 100_000,
                "batch_size": self.micro_batch,
                "micro_batch_size": self.micro_batch,
                "sequence_length": self.sequence,
                "precision": self.precision,
                "checkpoint": {"every_steps": 100_000},
                "validation": {"every_steps": 100_000},
                "output": {"model": "measured"},
            }
        )
        assert isinstance(spec, TrainJob)
        return spec


CASES = (
    Case("tiny", "fp32", 4, 256),
    Case("tiny", "bf16", 4, 512),
    Case("tiny", "fp32", 2, 1024),
    Case("small", "fp32", 1, 256),
    Case("small", "bf16", 1, 512),
)


QUICK_CASES = (CASES[0],)


def memory_predicted(options: Options) -> Measured:
    """The worst ratio of predicted to measured bytes of the cases."""
    cases = QUICK_CASES if options.quick else CASES
    with tempfile.TemporaryDirectory(prefix="llmos-memory-") as directory:
        data = Path(directory) / "text.txt"
        data.write_text("".join(path.read_text() for path in sorted(Path(os.__file__).parent.glob("[ab]*.py"))))
        peak_bytes(CASES[0].baseline.job(data), Path(directory))  # prepares the corpus, which takes memory of its own
        found = [_compare(case, data, Path(directory)) for case in cases]
    worst = max(found, key=lambda case: abs(case["ratio"] - 1))
    each = ", ".join(f"{case['case']} {case['ratio']:.3f}" for case in found)
    return Measured(worst["predicted_bytes"], worst["measured_bytes"], worst["ratio"], f"the worst of {each}")


def memory_fsdp4(options: Options) -> Measured:
    """Bytes of the tensors that the fullest of four ranks keeps between steps."""
    del options  # it is quick
    alone, spread = max(on_ranks(1, _state_bytes, 1)), max(on_ranks(FSDP, _state_bytes, FSDP))
    why = f"weights, gradients and AdamW's state after a step of preset tiny: {spread:,} of {alone:,} bytes"
    return Measured(spread, alone, spread / alone, why)


def _state_bytes(fsdp: int) -> int:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=4096, **asdict(PRESETS["tiny"])))
    mesh = RankMesh(World.current(), fsdp=fsdp)
    spread = SpreadModel(model, mesh, Layout(rows=1, share=1, length=64), cross_entropy_sum, Numerics())
    optimizer = Optimizer(spread.parameters, OptimizerSpec(), mesh.line("dp"))
    gradients = Gradients(spread.parameters, mesh, riders=1)
    tokens_BT = torch.randint(4096, (1, 64))
    gradients.zero()
    spread.passes.accumulate(tokens_BT, tokens_BT)
    gradients.sum([0.0])
    optimizer.step(1e-4, gradients.local())
    kept = [*optimizer.weights.values(), *optimizer.state().values(), *gradients.local()]
    return sum((tensor.to_local() if isinstance(tensor, DTensor) else tensor).nbytes for tensor in kept)


def predicted_bytes(job: TrainJob) -> float:
    """What the model of memory says one rank of ``job`` holds on a CPU."""
    return training_memory(model_shape(job), training_of(job, model_shape(job)), Mesh()).total


def peak_bytes(job: TrainJob, directory: Path) -> int:
    """The most resident memory of a process that trains ``job`` for a few steps."""
    spec = directory / f"{job.name}.json"
    spec.write_text(job.model_dump_json(exclude_none=True))
    state = Path(tempfile.mkdtemp(dir=directory))
    (state / "data").symlink_to(directory / "data")
    (directory / "data").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "llmos.train", str(spec), "--state-dir", str(state)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(directory)}
    with (
        (state / "log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            return _watch(process, state / "jobs" / job.name / "attempts" / "1" / "metrics.jsonl", state / "log")
        finally:
            process.send_signal(signal.SIGKILL)


def _watch(process: subprocess.Popen[bytes], metrics: Path, log: Path) -> int:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") >= MEASURED_STEPS:
            status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
            return int(status["VmHWM"].split()[0]) * 1024
        if process.poll() is not None:
            raise RuntimeError(f"training ended with code {process.returncode}:\n{log.read_text()[-2000:]}")
        time.sleep(0.05)
    raise TimeoutError(f"no {MEASURED_STEPS} steps within {TIMEOUT_S:.0f} s:\n{log.read_text()[-2000:]}")


def _compare(case: Case, data: Path, directory: Path) -> Mapping[str, Any]:
    job, base = case.job(data), case.baseline.job(data)
    measured = peak_bytes(job, directory) - peak_bytes(base, directory)
    predicted = round(predicted_bytes(job) - predicted_bytes(base))
    print(f"{job.name}: predicted {predicted:,} bytes, measured {measured:,}", file=sys.stderr, flush=True)
    return {
        "case": job.name,
        "predicted_bytes": predicted,
        "measured_bytes": measured,
        "ratio": round(predicted / measured, 3),
    }
