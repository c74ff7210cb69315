"""Attempts as detached actors: one per attempt, 0 CPU, on the head node.

An actor, because it answers by name whoever created it; detached, because Ray Train's controller dies with its caller
and the control module must be able to die without a training run noticing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from llmos import standby
from llmos.control import attempt
from llmos.control.ray.session import NAMESPACE
from llmos.layout import Layout

ENTRY = "llmos.train.worker:fit"
_PREFIX = "llmos-attempt-"


class AttemptActor:
    """Runs one attempt in a thread from the moment it exists, so that creating the actor is starting the attempt.

    It ends its process once the result is durable: nothing is left that would have to be cleaned up.
    """

    def __init__(self, state_dir: str, job: str, number: int, nodes: Sequence[str]) -> None:
        run = threading.Thread(target=self._run, args=(state_dir, job, number, tuple(nodes)), daemon=True)
        run.start()

    def _run(self, state_dir: str, job: str, number: int, nodes: tuple[str, ...]) -> None:
        try:
            dirs = Layout(Path(state_dir)).job(job).attempt(number)
            if attempt.claim(dirs, ray.get_runtime_context().get_session_name()):
                attempt.finish(dirs, _result(Path(state_dir), job, number, nodes))
        finally:
            # whatever happened, a full disk included: without a process, what the directory says is the truth
            os._exit(0)  # not sys.exit: this is not the main thread, and the main thread serves Ray for ever


def start(layout: Layout, job: str, number: int, nodes: Sequence[str]) -> None:
    """Start an attempt on ``nodes`` (Ray node ids, one per rank). Does nothing if it has been started already."""
    head = ray.get_runtime_context().get_node_id()  # the control actor's node, which has the state directory
    actor = ray.remote(AttemptActor).options(
        name=_PREFIX + f"{job}-{number}",
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=0,
        runtime_env={"env_vars": standby.attempt(layout.root)},
        scheduling_strategy=NodeAffinitySchedulingStrategy(head, soft=False),
    )
    actor.remote(str(layout.root), job, number, list(nodes))


def kill(job: str, number: int) -> None:
    """End an attempt's process now; its workers follow. Does nothing if it is gone."""
    try:
        actor = ray.get_actor(_PREFIX + f"{job}-{number}", namespace=NAMESPACE)
    except ValueError:
        return
    ray.kill(actor, no_restart=True)


def alive() -> Iterator[tuple[str, int]]:
    """(job id, attempt number) of every attempt that has a process."""
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(_PREFIX):
            job, _, number = actor["name"].removeprefix(_PREFIX).rpartition("-")
            yield job, int(number)


def _result(state_dir: Path, job: str, number: int, nodes: tuple[str, ...]) -> dict[str, Any]:
    job_dirs = Layout(state_dir).job(job)
    return attempt.carry_out(job_dirs, number, lambda secrets: _entry()(str(state_dir), job, number, nodes, secrets))


def _entry() -> Any:
    module, _, name = ENTRY.partition(":")
    return getattr(import_module(module), name)
