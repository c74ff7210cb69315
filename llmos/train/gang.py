"""How Ray Train's workers become the ranks of one process group, and again when one of them has been replaced.

A worker whose process dies on a living node is replaced by Ray Train, alone: the others keep their processes, which
have loaded torch and read the data. They notice that a rank is gone because a collective fails, and wait; the new
worker starts; all meet again and go on from the last checkpoint. Where collectives do not fail but hang (NCCL), Ray
Train starts every worker again.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from llmos.errors import WorkerLost
from llmos.settings import FAKE_GPUS
from llmos.train.run import AnyRun, ranks_of

NOTICE_TIMEOUT_S = 20.0
"""How long a rank may take to notice that another one is gone, once Ray Train has replaced it."""
REPLACED_TIMEOUT_S = 60.0
"""How long ranks wait for the replacement of one that is gone."""
REACH_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Gang(BackendConfig):
    """The gang whose rank i is on node ``nodes[i]`` (a Ray node id). A collective may take ``timeout_s``."""

    nodes: tuple[str, ...]
    on_gpus: bool
    timeout_s: float

    @property
    def backend_cls(self) -> type[Backend]:
        return _Meetings if self.on_gpus else _Replacing

    def to_dict(self) -> dict[str, Any]:
        return {}


class Deaths(FailurePolicy):
    """Has Ray Train start a worker again whose process died on a living node, at most ``limit`` times in an attempt.

    Everything else ends the attempt, and ``plan`` decides: it alone knows what nodes there are. So does a rank that has
    left its reason at ``cause`` before it ended.
    """

    def __init__(self, nodes: Sequence[str], limit: int, cause: Path) -> None:
        self._nodes, self._left, self._cause = set(nodes), limit, cause

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        died = _only_died(training_failed_error) and not self._cause.exists()
        if not died or self._left < 1 or not all(map(reachable, self._nodes)):
            return FailureDecision.RAISE
        self._left -= 1
        return FailureDecision.RETRY


def reachable(node: str) -> bool:
    """Whether the Ray node with this id answers. Ray itself takes a while to find out that one does not."""
    for found in ray.nodes():
        if found["NodeID"] == node and found["Alive"]:
            try:
                socket.create_connection(
                    (found["NodeManagerAddress"], found["NodeManagerPort"]), REACH_TIMEOUT_S
                ).close()
                return True
            except OSError:
                return False
    return False


def have_gpus(nodes: Sequence[str]) -> bool:
    """Whether the GPUs of the Ray nodes with these ids are there, and not numbers only."""
    return not any(FAKE_GPUS in found.get("Labels", {}) for found in ray.nodes() if found["NodeID"] in nodes)


def _only_died(error: TrainingFailedError) -> bool:
    """Whether workers died, and others failed at most because of that."""
    if not isinstance(error, WorkerGroupError):
        return False
    failures = error.worker_failures.values()
    if any("low on memory" in str(failure) for failure in failures):
        return False  # the same would happen again
    died = [isinstance(getattr(failure, "health_check_failure", None), RayActorError) for failure in failures]
    return any(died) and all(d or isinstance(f, WorkerLost) for d, f in zip(died, failures, strict=True))


class _Meetings(Backend):
    """Tells workers which rank they are and where they meet: on the cluster's own interface only."""

    share_cuda_visible_devices = True  # ranks of a node reach each other's GPUs directly

    def __init__(self) -> None:
        self._workers: Any = None

    def on_start(self, worker_group: Any, backend_config: Gang) -> None:
        group = worker_group.execute_single(0, ray.util.get_current_placement_group)
        self._workers = worker_group.get_workers
        try:
            self._meet(backend_config)
        except BaseException:
            # Ray Train begins to look after the group's resources only once this has succeeded
            ray.util.remove_placement_group(group)
            raise

    def _meet(self, gang: Gang) -> None:
        ranked = sorted(
            zip(ranks_of(self._node_ids(), gang.nodes), self._workers(), strict=True), key=lambda pair: pair[0]
        )
        workers = [worker for _, worker in ranked]
        host, port = ray.get(workers[0].execute_async(_listen))
        told = {"backend": "nccl" if gang.on_gpus else "gloo", "host": host, "port": port, "size": len(workers)}
        told["timeout_s"] = gang.timeout_s
        ray.get([worker.execute_async(_tell, {**told, "rank": rank}) for rank, worker in enumerate(workers)])

    def _node_ids(self) -> list[str]:
        return [worker.metadata.node_id for worker in self._workers()]


class _Replacing(_Meetings):
    """Has Ray Train replace a worker that died, alone, and brings it together with the others."""

    has_replica_groups = True  # Ray Train's word for workers that can be replaced one by one

    def on_start(self, worker_group: Any, backend_config: Gang) -> None:
        if isinstance(worker_group, WorkerGroup):
            return super().on_start(worker_group, backend_config)
        new = worker_group.get_workers()
        try:
            ray.get([worker.execute_async(_noticed, worker not in new) for worker in self._workers()])
        except RayActorError:
            return None  # another one is to be replaced yet: the last of them brings all together
        return self._meet(backend_config)


_told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
"""In a worker's process: what its actor's thread was told, for the thread that trains."""
_waiting = threading.Event()
"""In a worker's process: whether the thread that trains has noticed that another rank is gone."""
_listening: list[socket.socket] = []
"""Rank 0's rendezvous socket between ``_listen`` and ``_join``, which run in the same process."""


def be_rank(run: AnyRun, secrets: Mapping[str, str]) -> None:
    """What each worker runs: train as the rank that it is told to be, and again when another one was replaced."""
    from llmos.train.rank import leave, run_rank, say_waiting  # loads torch

    meeting = _told.get(timeout=REPLACED_TIMEOUT_S)
    while True:
        _join(meeting)
        os.environ.update(secrets)  # not before torch is there: what its libraries cannot use of them, they would print
        try:
            return run_rank(run, tuple(secrets.values()))
        except WorkerLost:
            if meeting["backend"] != "gloo":
                raise
            leave()
            say_waiting(run, tuple(secrets.values()))
            meeting = _next_meeting()
            if not meeting:
                raise


def _next_meeting() -> dict[str, Any]:
    """Wait until Ray Train has replaced a worker. Empty if it does not."""
    _waiting.set()
    try:
        return _told.get(timeout=REPLACED_TIMEOUT_S)
    except queue.Empty:
        return {}
    finally:
        _waiting.clear()


def _noticed(expected: bool) -> None:
    if expected and not _waiting.wait(NOTICE_TIMEOUT_S):
        raise WorkerLost(f"a rank did not notice within {NOTICE_TIMEOUT_S:.0f} s that another one was gone")


def _tell(meeting: dict[str, Any]) -> None:
    _told.put(meeting)


def _listen() -> tuple[str, int]:
    listener = socket.create_server((ray.util.get_node_ip_address(), 0))
    _listening.append(listener)
    host, port = listener.getsockname()[:2]
    return str(host), int(port)


def _join(meeting: Mapping[str, Any]) -> None:
    """Join the process group that ``meeting`` tells of."""
    from llmos.train.rank import join

    context, rank, size = ray.train.get_context(), meeting["rank"], meeting["size"]
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(context.get_local_rank()))
    os.environ.update(LOCAL_WORLD_SIZE=str(context.get_local_world_size()), NODE_RANK=str(context.get_node_rank()))
    listener = _listening.pop().detach() if rank == 0 else None
    join(meeting["backend"], meeting["host"], meeting["port"], rank, size, meeting["timeout_s"], listener)
