"""The Ray Train entry: one attempt of a job as a run of Ray Train.

Everything that knows Ray is here; ``rank.run_rank`` runs in every worker and does not. Ray Train starts the workers,
joins them into one process group and watches them. Retries are not its business: ``plan`` decides on the next attempt.

Why not ``TorchTrainer``: it loads torch in the attempt's process and in Ray Train's controller, which do not compute.
On two cores that is 4 of the 14 seconds of processor time between submitting a job and its first step. Its base class
and a backend of our own (which listens on one interface only) do the same without.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from llmos.errors import ClusterError, LlmosError, OutOfMemoryError, WorkerLost
from llmos.files import read_json
from llmos.layout import Layout
from llmos.spec import TrainJob, parse
from llmos.train import cause
from llmos.train.limits import collective_timeout_s
from llmos.train.run import Run

WORKERS_START_TIMEOUT_S = 60
HEALTH_CHECK_INTERVAL_S = 1.0
"""How often Ray Train looks after its workers; also how late it notices that they are done. Its default is 2 s."""


def fit(state_dir: str, job: str, number: int, nodes: Sequence[str], secrets: Mapping[str, str]) -> dict[str, Any]:
    """Run attempt ``number`` of ``job`` on ``nodes`` (Ray node ids, one per rank) and return its result.

    The result is that of ``result.json``: phase (succeeded or yielded), step, metrics. Raises what a rank raised,
    WorkerLost when a worker's process died, ClusterError when the workers could not be started.
    """
    layout = Layout(Path(state_dir))
    dirs = layout.job(job).attempt(number)
    spec = parse(read_json(layout.job(job).spec))
    assert isinstance(spec, TrainJob)
    run = Run(spec, layout.job(job), dirs, layout.data, _base_model(layout, spec))
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = str(HEALTH_CHECK_INTERVAL_S)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(WORKERS_START_TIMEOUT_S)
    trainer = DataParallelTrainer(
        # secrets travel inside the function, never through an environment that Ray would show
        partial(_rank, run, dict(secrets)),
        backend_config=_Gang(collective_timeout_s(spec.watchdog.timeout)),
        scaling_config=_scaling(spec, nodes),
        run_config=RunConfig(
            name="ray_train",
            storage_path=str(dirs.root),
            worker_runtime_env={"env_vars": dict(spec.env)},
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise cause.left(dirs.cause) or _cause(error) from error
    outcome = read_json(dirs.outcome)
    if outcome is None:
        raise WorkerLost(f"training ended without {dirs.outcome}", hint="see the job's log")
    return dict(outcome)


def _scaling(spec: TrainJob, nodes: Sequence[str]) -> ScalingConfig:
    resources = {"CPU": spec.resources.cpus, "GPU": spec.resources.gpus, "memory": spec.resources.memory or 0}
    return ScalingConfig(
        num_workers=len(nodes),
        use_gpu=spec.resources.gpus > 0,
        resources_per_worker={name: amount for name, amount in resources.items() if amount},
        label_selector=[{"ray.io/node-id": node} for node in nodes],
    )


def _base_model(layout: Layout, spec: TrainJob) -> Path | None:
    """The directory of the registered model to start from. Control has pinned its version when it took the job."""
    if spec.model.ref is None:
        return None
    name, _, version = spec.model.ref.partition("@")
    return layout.model(name, int(version))


def _rank(run: Run, secrets: Mapping[str, str]) -> None:
    """What each worker runs."""
    from llmos.train.rank import run_rank  # loads torch, which this process has loaded to join the others

    os.environ.update(secrets)
    run_rank(run, tuple(secrets.values()))


def _cause(error: TrainingFailedError) -> LlmosError:
    """The error to show: what the lowest rank raised on purpose, else what is known of the failure."""
    if isinstance(error, WorkerGroupError):
        causes = [_unwrapped(failure) for _, failure in sorted(error.worker_failures.items())]
        for cause in causes:
            if isinstance(cause, LlmosError):
                return cause
        if killed := next(filter(_is_out_of_memory, causes), None):
            what = f"Ray ended a rank because its node was short of memory: {_summary(killed)}"
            hint = "Use a smaller micro_batch_size, activation_checkpointing, or reserve `resources.memory`."
            return OutOfMemoryError(what, hint=hint)
        ranks = ", ".join(map(str, sorted(error.worker_failures)))
        return WorkerLost(f"rank {ranks} failed: {_summary(causes[0])}", hint="see the job's log")
    if isinstance(error, ControllerError):
        what = _summary(_unwrapped(error.controller_failure))
        return ClusterError(f"the workers could not be started: {what}", hint="see the job's log")
    return ClusterError(str(error))


def _unwrapped(failure: Exception) -> BaseException:
    """The user's exception inside Ray's wrapper, or ``failure`` itself."""
    return getattr(failure, "_base_exc", None) or getattr(failure, "cause", None) or failure


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether Ray's memory monitor killed the worker: by its own error, or in the words of another."""
    return isinstance(error, ray.exceptions.OutOfMemoryError) or "low on memory" in str(error)


def _summary(error: BaseException) -> str:
    """One line: the kind of error, and the first line of its message."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"


class _Processes(Backend):
    """Joins the workers into one torch process group whose rendezvous is on the cluster's own interface only."""

    share_cuda_visible_devices = True  # ranks of a node reach each other's GPUs directly

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        group = worker_group.execute_single(0, ray.util.get_current_placement_group)
        try:
            host, port = worker_group.execute_single(0, _listen)
            timeout_s = backend_config.timeout_s
            told = {"backend": "nccl" if gpus else "gloo", "host": host, "port": port, "timeout_s": timeout_s}
            ray.get([worker_group.execute_single_async(i, _join, **told) for i in range(len(worker_group))])
        except BaseException:
            # Ray Train begins to look after the group's resources only once this has succeeded
            ray.util.remove_placement_group(group)
            raise


@dataclass
class _Gang(BackendConfig):
    timeout_s: float
    """How long a collective may take."""

    @property
    def backend_cls(self) -> type[_Processes]:
        return _Processes


_listening: list[socket.socket] = []
"""Rank 0's rendezvous socket between ``_listen`` and ``_join``, which run in the same process."""


def _listen() -> tuple[str, int]:
    listener = socket.create_server((ray.util.get_node_ip_address(), 0))
    _listening.append(listener)
    host, port = listener.getsockname()[:2]
    return str(host), int(port)


def _join(backend: str, host: str, port: int, timeout_s: float) -> None:
    """Join the process group of this worker's gang, whose rank 0 listens at ``host:port``."""
    from llmos.train.rank import join

    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(context.get_local_rank()))
    os.environ.update(LOCAL_WORLD_SIZE=str(context.get_local_world_size()), NODE_RANK=str(context.get_node_rank()))
    listener = _listening.pop().detach() if rank == 0 else None
    join(backend, host, port, rank, size, timeout_s, listener)
