"""Work on a large corpus as a Ray Data job, done by the cluster that this process is part of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import ray
from ray import cloudpickle

from llmos import standby
from llmos.errors import LlmosError
from llmos.train.work import Progress, R, T, Work


def is_on_cluster() -> bool:
    """Whether this process is part of a Ray cluster."""
    return bool(ray.is_initialized())


def on_ray(report: Callable[[str], None]) -> Work:
    """Work by the tasks of a Ray Data job. Items, results and what is written must be reachable on every node.

    The tasks reserve nothing: the ranks of this job hold its CPUs and wait meanwhile, so they run on those, as many as
    there are. Tasks that asked for CPUs of their own would wait for ever on a cluster that the job fills.
    """

    def work(do: Callable[[T], R], items: Sequence[T], what: str) -> Iterator[R]:
        from ray import data  # only here: it takes a second to load

        data.DataContext.get_current().enable_progress_bars = False  # made for terminals; ``report`` writes a log
        progress = Progress(report, what, len(items))
        rows = [{"number": number, "item": cloudpickle.dumps(item)} for number, item in enumerate(items)]
        tasks = data.from_items(rows, override_num_blocks=max(1, len(rows))).map(partial(_do, do), **_where(len(rows)))
        done: dict[int, Any] = {}
        for row in tasks.iter_rows():
            outcome = cloudpickle.loads(row["outcome"])
            if isinstance(outcome, LlmosError):
                raise outcome
            done[row["number"]] = outcome
            progress.advance()
        yield from (done[number] for number in range(len(items)))

    return work


def _do(do: Callable[[T], R], row: dict[str, Any]) -> dict[str, Any]:
    """One task. An error that we raise on purpose is a result: Ray would wrap it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each task has one CPU
    try:
        outcome: Any = do(cloudpickle.loads(row["item"]))
    except LlmosError as error:
        outcome = error
    return {"number": row["number"], "outcome": cloudpickle.dumps(outcome)}


def _where(tasks: int) -> dict[str, Any]:
    """On which nodes tasks run, and how many at once: where this job has its CPUs, as many as it has."""
    from ray.data import TaskPoolStrategy
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    strategy: Any = "SPREAD"
    group = ray.util.get_current_placement_group()
    if group is None:
        cpus = ray.cluster_resources().get("CPU", 1)
    else:
        cpus = sum(bundle.get("CPU", 0) for bundle in group.bundle_specs)
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    at_once = max(1, min(int(cpus), tasks))
    nothing = {"env_vars": dict(standby.NOTHING)}
    how = {"compute": TaskPoolStrategy(size=at_once), "scheduling_strategy": strategy}
    return {"num_cpus": 0, "runtime_env": nothing, **how}
