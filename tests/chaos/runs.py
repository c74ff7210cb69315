"""The job that these tests break, and what its committed history says: losses and samples of every step."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

import llmos
from llmos.settings import state_dir
from llmos.spec import CheckpointPolicy, Workers
from tests.support import ROOT, nano, processes, words

STEPS = 120
EVERY = 15


@dataclass(frozen=True)
class History:
    """Of each step that counts, from 1 on: its loss, and the samples that all ranks read together."""

    losses: dict[int, float]
    samples: dict[int, list[str]]


def job(name: str, workers: int | tuple[int, int], **fields: Any) -> llmos.TrainJob:
    """A job of ``STEPS`` steps on exactly so many workers, or from the fewest to the most."""
    fewest, most = workers if isinstance(workers, tuple) else (workers, workers)
    spec = nano(name, fewest, STEPS, checkpoint=CheckpointPolicy(every_steps=EVERY, keep=3), **fields)
    data = llmos.Data(path=(str(ROOT / "llmos" / "core" / "*.py"),), vocab_size=320, log_samples=True)
    sizes = Workers(min=fewest, max=most, grow_every=1.0)
    # fp32: in bf16, the order of sums that a mesh makes is seen in the third digit. One sequence at a time: a step is
    # to take long enough for something to happen to it
    step = {"batch_size": 12, "micro_batch_size": 1, "precision": "fp32"}
    return spec.model_copy(update={"data": data, "workers": sizes, **step})


def history(cluster: llmos.Client, job: str) -> History:
    """What ``job`` has done. Where attempts overlap, the later one counts: it went on from a checkpoint."""
    losses = {row.step: row.loss for row in cluster.metrics(job)}
    assert list(losses) == list(range(1, len(losses) + 1))
    samples: dict[int, list[str]] = {}
    for attempt in sorted((state_dir(None) / "jobs" / job / "attempts").iterdir(), key=lambda path: int(path.name)):
        read: dict[int, list[str]] = {}
        for file in attempt.glob("samples-*.jsonl"):
            seen: set[int] = set()
            for line in file.read_text().splitlines():
                row = json.loads(line)
                assert row["step"] not in seen, f"{file} has step {row['step']} twice"
                seen.add(row["step"])
                read.setdefault(row["step"], []).extend(row["ids"])
        samples |= read
    return History(losses, {step: sorted(samples[step]) for step in sorted(samples) if step in losses})


def steps_done(job: str) -> list[int]:
    """The steps that all attempts of ``job`` together have done, in order: one that was done again is there again."""
    files = (state_dir(None) / "jobs" / job / "attempts").glob("*/metrics.jsonl")
    return sorted(json.loads(line)["step"] for file in files for line in file.read_text().splitlines())


def until(what: Callable[[], object], timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "gave up waiting"
        time.sleep(0.1)


def named(kind: str) -> list[psutil.Process]:
    """The cluster's processes whose title has ``kind`` in it."""
    return [process for process in processes(Path.home()) if any(kind in word for word in words(process))]


@contextmanager
def extra_node(cluster: llmos.Client, directory: Path, cpus: int = 1) -> Iterator[Callable[[], None]]:
    """One more node; yields how to kill it."""
    before = len(cluster.status()["nodes"])
    address = json.loads((state_dir(None) / "cluster.json").read_text())["address"]
    resources = json.dumps({"CPU": cpus})
    command = [sys.executable, "-m", "llmos.control.ray.local_node", address, str(directory), resources]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(state_dir(None) / "ray_token")}
    with (directory / "log").open("wb") as log:
        node = psutil.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **token}, start_new_session=True, cwd=ROOT
        )

    def kill() -> None:
        for member in [*node.children(recursive=True), node]:
            member.kill()

    try:
        until(lambda: len(cluster.status()["nodes"]) > before)
        yield kill
    finally:
        if node.is_running():
            kill()
        node.wait()
