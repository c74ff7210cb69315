"""The Ray Train entry: one attempt of a job as a run of Ray Train.

What knows Ray is here and in ``gang``; ``rank.run_rank`` runs in every worker and does not. Ray Train starts the
workers, watches them, and replaces one whose process dies on a living node. Every other end is that of the attempt:
``plan`` decides on the next one.

Why not ``TorchTrainer``: it loads torch in processes that do not compute, starts one for its controller and one more to
watch that. On two cores this takes longer than training's own start. Its base class, with the controller in the
attempt's own process and a backend of ours (which listens on one interface only), does the same without.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray.exceptions
from ray.train import FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import (
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
    ScalingPolicy,
)
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from llmos import standby
from llmos.errors import ClusterError, LlmosError, OutOfMemoryError, WorkerLost
from llmos.files import read_json
from llmos.layout import AttemptDirs, JobDirs, Layout
from llmos.spec import Job, TrainFunction, TrainJob, parse
from llmos.train import cause
from llmos.train.gang import Deaths, Gang, be_rank, have_gpus
from llmos.train.limits import collective_timeout_s
from llmos.train.run import AnyRun, FunctionRun, Run

_NOT_NEEDED = (PlacementGroupCleanerCallback, DatasetsCallback)


def fit(state_dir: str, job: str, number: int, nodes: Sequence[str], secrets: Mapping[str, str]) -> dict[str, Any]:
    """Run attempt ``number`` of ``job`` on ``nodes`` (Ray node ids, one per rank) and return its result.

    The result is that of ``result.json``: phase (succeeded or yielded), step, metrics. Raises what a rank raised,
    WorkerLost when a worker's process died, ClusterError when the workers could not be started.
    """
    layout = Layout(Path(state_dir))
    dirs = layout.job(job).attempt(number)
    spec = parse(read_json(layout.job(job).spec))
    assert isinstance(spec, TrainJob | TrainFunction)
    spec = spec.on(len(nodes))
    run = _run(spec, layout, layout.job(job), dirs)
    on_gpus = spec.resources.gpus > 0 and have_gpus(nodes)
    os.environ.update(standby.RAY_TRAIN)
    trainer = _Trainer(
        # secrets travel inside the function, never through an environment that Ray would show
        partial(be_rank, run, dict(secrets)),
        deaths=Deaths(nodes, spec.retries, dirs.cause),
        backend_config=Gang(tuple(nodes), on_gpus, collective_timeout_s(spec.watchdog.timeout)),
        scaling_config=_scaling(spec, nodes),
        run_config=RunConfig(
            name="ray_train",
            storage_path=str(dirs.root),
            worker_runtime_env={"env_vars": {**standby.rank(layout.root), **spec.env}},
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


class _Trainer(DataParallelTrainer):
    """Ray Train with its controller in this process: when this process ends, Ray takes back all that it created."""

    def __init__(self, *args: Any, deaths: Deaths, **options: Any) -> None:
        super().__init__(*args, **options)
        self._deaths = deaths

    def _initialize_and_run_controller(self, **parts: Any) -> Result:
        policies = {"failure_policy": self._deaths, "scaling_policy": _Planned(self.scaling_config)}
        controller = TrainController(**{**parts, **policies})
        asyncio.run(controller.run())
        return controller.get_result()

    def _create_default_callbacks(self) -> list[Any]:
        """Without those that start a process each: one looks after the controller, which is here, one splits datasets
        of Ray Data, and a rank reads its own share of the shards."""
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, _NOT_NEEDED)]


class _Planned(ScalingPolicy):
    """As many workers as ``plan`` has said, on nodes that are there.

    Ray Train's own policy does the same and asks Ray's autoscaler for the nodes, too. Who asks last is heard, so that
    would undo what ``plan`` wants; and the actor that asks is one more process of every cluster.
    """

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        size = self._get_num_workers_for_resource_request()
        return ResizeDecision(size, self.scaling_config._resources_per_worker_not_none)

    def make_decision_for_running_worker_group(self, *_seen: Any, **_also: Any) -> ScalingDecision:
        return NoopDecision()

    def after_controller_start(self, *_run: Any, **_also: Any) -> None:
        self._coordinator_client = None  # whom Ray Train asks

    def _get_num_workers_for_resource_request(self) -> int:
        return int(self.scaling_config.num_workers)


def _scaling(spec: Job, nodes: Sequence[str]) -> ScalingConfig:
    resources = {"CPU": spec.resources.cpus, "GPU": spec.resources.gpus, "memory": spec.resources.memory or 0}
    resources |= spec.resources.custom or {}
    return ScalingConfig(
        num_workers=len(nodes),
        use_gpu=spec.resources.gpus > 0,
        resources_per_worker={name: amount for name, amount in resources.items() if amount},
        label_selector=[{"ray.io/node-id": node} for node in nodes],
    )


def _run(spec: Job, layout: Layout, job_dirs: JobDirs, dirs: AttemptDirs) -> AnyRun:
    if isinstance(spec, TrainJob):
        return Run(spec, job_dirs, dirs, layout.data, _base_model(layout, spec), layout.calibration)
    return FunctionRun.of(spec, layout, job_dirs, dirs)


def _base_model(layout: Layout, spec: TrainJob) -> Path | None:
    """The directory of the registered model to start from. Control has pinned its version when it took the job."""
    if spec.model.ref is None:
        return None
    name, _, version = spec.model.ref.partition("@")
    return layout.model(name, int(version))


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
