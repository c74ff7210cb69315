"""The jobs of these tests, and what is looked at while they run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llmos
from llmos.spec import CheckpointPolicy, Resources
from tests.support import nano

NODES = 4
STEPS = 40
Figure = Callable[[str, float], None]
"""Shows what took so many seconds."""


@dataclass(frozen=True)
class Run:
    """A job that has ended: how, and why each of its attempts was started where it was."""

    view: llmos.JobView
    starts: list[str]


def job(name: str, workers: int, steps: int = STEPS, **fields: Any) -> llmos.TrainJob:
    """A job whose workers have a node each: it asks for the one GPU that a node has. Equal ones have equal losses."""
    spec = nano(name, workers, steps, resources=Resources(cpus=1, gpus=1), precision="fp32", **fields)
    # the only checkpoints are those that it is asked for; and its steps take long enough for something to happen
    policy = CheckpointPolicy(every_steps=10**6)
    return spec.model_copy(update={"checkpoint": policy, "batch_size": 16, "micro_batch_size": 1})


def until(what: Callable[[], object], timeout_s: float = 60.0) -> float:
    """Wait for ``what``; how many seconds that took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() < began + timeout_s, "gave up waiting"
        time.sleep(0.1)
    return time.monotonic() - began


def nodes(cluster: llmos.Client) -> int:
    """How many nodes there are."""
    return len(cluster.status()["nodes"])


def kind(cluster: llmos.Client) -> dict[str, Any]:
    """What is told about the one kind of node that can be started."""
    (found,) = cluster.status()["kinds"]
    return dict(found)
