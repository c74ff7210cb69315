"""``llmos simulate cluster``: jobs and services on the same GPUs, in virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmos.sim.faults import Faults
from llmos.sim.fleet import Fleet
from llmos.sim.job_replay import RESTART_S, Stay, World, replay
from llmos.sim.job_report import report
from llmos.sim.job_traces import TraceJob
from llmos.sim.planned import Planned
from llmos.sim.pool import Pool

TICK_S = 1.0
"""How often the count of replicas is looked at: as often as the control loop does."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it: figures of all jobs, those of each service, and who held what."""

    jobs: dict[str, float | None]
    services: dict[str, dict[str, float | None]]
    stays: tuple[Stay, ...]


def twin(
    jobs: Sequence[TraceJob],
    fleets: Sequence[Fleet],
    nodes: int,
    per_node: int,
    until_s: float,
    faults: Faults | None = None,
) -> Result:
    """Let ``jobs`` and the requests of ``fleets`` come to a cluster until ``until_s`` seconds, while ``faults`` happen.

    Raises UsageError.
    """
    world = World(Pool(nodes, per_node), RESTART_S, faults)
    runs = replay(jobs, world, Planned(world.pool, fleets, tick_s=TICK_S), until_s=until_s)
    open_stays = [
        Stay(run.job.tenant, run.placement, run.started_s, world.now)
        for run in world.running.values()
        if run.placement and run.started_s < world.now
    ]
    for fleet in fleets:
        fleet.serve(world.now)
        fleet.close(world)
    stays = [*world.stays, *open_stays, *(stay for fleet in fleets for stay in fleet.stays)]
    done_gpu_s = sum(run.done(world.now) * run.job.gpus for run in runs)
    whole = world.pool.total * until_s
    figures = report(runs, world) | {"goodput_pct": 100 * done_gpu_s / whole}
    return Result(figures, {fleet.plans.name: _figures(fleet, until_s) for fleet in fleets}, tuple(stays))


def _figures(fleet: Fleet, until_s: float) -> dict[str, float | None]:
    """Of one service: ``attained_pct`` of the requests that came, those that wait among them, kept their promises."""
    came = fleet.answered + fleet.unanswered()
    return {
        "requests": came,
        "attained_pct": 100 * fleet.kept / came if came else None,
        "mean_replicas": fleet.gpu_s / fleet.plans.gpus / until_s,
        "starts": fleet.starts,
    }
