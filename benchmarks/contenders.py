"""llmos and its peers on one training problem: each as its own documentation runs it, in a process of its own.

A :class:`Case` says the problem, an :class:`Arena` prepares it in a directory: one text as tokens, which all read, and
one shape, which llmos, HF Trainer and litgpt train; nanoGPT, which has GPT-2's blocks, gets as many layers as come to
the same number of parameters. All train in fp32 without torch.compile (nanoGPT's own setting for CPUs), with AdamW,
clipping and a cosine, in the same micro-batches, on as many threads.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers import HF, LITGPT, NANOGPT
from llmos.models import ModelConfig, Transformer, weights
from llmos.models.tokenizer import train_bpe

DRIVERS = Path(__file__).resolve().parent / "drivers"
WARM_UP = 1
"""Steps that are not counted: the first one allocates."""
_TOKENIZER_SIZE = 2048
_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class Case:
    """Steps of ``accumulate`` micro-batches of ``micro_batch`` sequences of ``length`` tokens.

    ``gpt`` are the options of nanoGPT that make a model of as many parameters as ``config``.
    """

    name: str
    config: ModelConfig
    gpt: Mapping[str, int]
    micro_batch: int = 4
    accumulate: int = 2
    length: int = 256
    steps: int = 8
    threads: int = 1

    @property
    def step_tokens(self) -> int:
        """Tokens of a step."""
        return self.accumulate * self.micro_batch * self.length


class Arena:
    """``case`` prepared in ``directory``, an empty one."""

    def __init__(self, case: Case, directory: Path) -> None:
        self.case, self.directory = case, directory
        self.text, self.tokens = directory / "text.txt", directory / "nanogpt" / "train.bin"
        self._prepare()

    def _prepare(self) -> None:
        """The text (Python's own library), a tokenizer, the model's files for llmos and the tokens for the others."""
        library = sorted(Path(os.__file__).parent.glob("[a-c]*.py"))
        self.text.write_text("".join(path.read_text() for path in library))
        tokenizer = train_bpe([self.text], _TOKENIZER_SIZE)
        model = self.directory / "state" / "models" / "start" / "1"
        model.mkdir(parents=True)
        torch.manual_seed(0)
        weights.save_model(Transformer(self.case.config), model)
        tokenizer.save(model)
        self.tokens.parent.mkdir()
        np.array(tokenizer.encode(self.text.read_text()), dtype=np.uint16).tofile(self.tokens)
        shutil.copy(self.tokens, self.tokens.parent / "val.bin")
        with (self.tokens.parent / "meta.pkl").open("wb") as file:
            pickle.dump({"vocab_size": self.case.config.vocab_size}, file)

    def environment(self) -> dict[str, str]:
        """Of every contender: its threads, nothing from the network, nothing compiled."""
        threads = str(self.case.threads)
        told = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TORCHDYNAMO_DISABLE": "1"}
        return {**os.environ, **told, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "HOME": str(self.directory)}

    def spec(self) -> dict[str, Any]:
        """The case as a TrainJob that goes on until it is ended."""
        case = self.case
        return {
            "kind": "TrainJob",
            "name": case.name,
            "model": {"ref": "start@1"},
            "data": {"path": str(self.text), "validation_fraction": 0.01},
            "steps": 100_000,
            "batch_size": case.micro_batch * case.accumulate,
            "micro_batch_size": case.micro_batch,
            "sequence_length": case.length,
            "precision": "fp32",
            "optimizer": {"name": "adamw", "learning_rate": 1e-4},
            "checkpoint": {"every_steps": 100_000},
            "validation": {"every_steps": 100_000},
            "resources": {"cpus": case.threads},
            "output": {"model": case.name},
        }


def llmos(arena: Arena) -> list[float]:
    """Seconds of each counted step of ``python -m llmos.train``, from the times in its metrics."""
    state, wanted = arena.directory / "state", WARM_UP + arena.case.steps
    shutil.rmtree(state / "jobs", ignore_errors=True)
    (state / "spec.json").write_text(json.dumps(arena.spec()))
    command = [sys.executable, "-m", "llmos.train", str(state / "spec.json"), "--state-dir", str(state)]
    metrics = state / "jobs" / arena.case.name / "attempts" / "1" / "metrics.jsonl"
    log = arena.directory / "llmos.log"
    with log.open("w") as out, subprocess.Popen(command, env=arena.environment(), stdout=out, stderr=out) as process:
        try:
            rows = watch(process, metrics, wanted, log)
        finally:
            process.send_signal(signal.SIGKILL)
    times = [row["time_s"] for row in rows[:wanted]]
    return [after - before for before, after in itertools.pairwise(times)]


def watch(process: subprocess.Popen[bytes], metrics: Path, wanted: int, log: Path) -> list[dict[str, float]]:
    """The rows of ``metrics`` once there are ``wanted``. Raises RuntimeError when the process ends before."""
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        if metrics.exists() and len(lines := metrics.read_text().splitlines()) >= wanted:
            return [json.loads(line) for line in lines]
        if process.poll() is not None:
            raise RuntimeError(f"llmos ended with code {process.returncode}: {log.read_text()[-1000:]}")
        time.sleep(0.05)
    raise TimeoutError(f"no {wanted} steps within {_TIMEOUT_S:.0f} s: {log.read_text()[-1000:]}")


def nanogpt(arena: Arena) -> list[float]:
    """Seconds of each counted step of nanoGPT's ``train.py``, as it prints them."""
    case = arena.case
    options = {
        **case.gpt,
        "device": "cpu",
        "compile": False,
        "dtype": "float32",
        "dataset": str(arena.tokens.parent),
        "out_dir": str(arena.directory / "nanogpt-out"),
        "batch_size": case.micro_batch,
        "gradient_accumulation_steps": case.accumulate,
        "block_size": case.length,
        "max_iters": WARM_UP + case.steps - 1,
        "eval_iters": 1,
        "eval_interval": 100_000,
        "always_save_checkpoint": False,
    }
    command = [str(NANOGPT.python), "train.py", *(f"--{name}={value}" for name, value in options.items())]
    found = run(command, arena.environment(), NANOGPT.repository)
    return [float(ms) / 1000 for ms in re.findall(r"^iter \d+: .* time ([\d.]+)ms", found, re.MULTILINE)][WARM_UP:]


def hf_trainer(arena: Arena) -> list[float]:
    """Seconds of each counted step of HF Trainer."""
    return _driven(arena, HF.python, "hf_trainer.py")


def litgpt(arena: Arena) -> list[float]:
    """Seconds of each counted step of litgpt's pretraining."""
    return _driven(arena, LITGPT.python, "litgpt_pretrain.py")


CONTENDERS: Mapping[str, Callable[[Arena], list[float]]] = {
    "llmos": llmos,
    NANOGPT.title: nanogpt,
    HF.title: hf_trainer,
    LITGPT.title: litgpt,
}


def _driven(arena: Arena, python: Path, script: str) -> list[float]:
    case = arena.case
    told = {
        "directory": str(arena.directory / script),
        "tokens": str(arena.tokens),
        "length": case.length,
        "micro_batch": case.micro_batch,
        "accumulate": case.accumulate,
        "steps": WARM_UP + case.steps,
        "model": case.config.to_hf(),
    }
    found = run([str(python), str(DRIVERS / script), json.dumps(told)], arena.environment(), arena.directory)
    return [json.loads(line)["step_s"] for line in found.splitlines() if line.startswith('{"step_s"')][: case.steps]


def run(command: list[str], environment: Mapping[str, str], directory: Path, timeout_s: float = _TIMEOUT_S) -> str:
    """What ``command`` prints. Raises RuntimeError with the end of what it said when it fails."""
    done = subprocess.run(
        command, env=environment, cwd=directory, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-1000:]
        raise RuntimeError(f"{Path(command[0]).name} {Path(command[1]).name} ended with {done.returncode}: {said}")
    return done.stdout
