"""``llmos simulate jobs``: a trace of jobs under one of the policies."""

from __future__ import annotations

from collections.abc import Sequence

from llmos.errors import UsageError
from llmos.sim import SCHEDULING
from llmos.sim.faults import Faults
from llmos.sim.job_policies import Backfill, Fifo
from llmos.sim.job_replay import RESTART_S, Policy, Run, World, replay
from llmos.sim.job_traces import TraceJob
from llmos.sim.planned import Planned
from llmos.sim.pool import Pool
from llmos.sim.shortest import Shortest


def schedule(
    jobs: Sequence[TraceJob], policy: str, gpus: int, per_node: int, faults: Faults | None = None
) -> tuple[list[Run], World]:
    """Replay ``jobs`` under ``policy`` on ``gpus`` GPUs in nodes of ``per_node``, on which ``faults`` happen.

    The bound knows how long each job will run, and it preempts at no cost. Raises UsageError.
    """
    if gpus % per_node:
        raise UsageError(f"{gpus} GPUs are not nodes of {per_node}: expected a multiple", param="--gpus")
    world = World(Pool(gpus // per_node, per_node), 0.0 if policy == "bound" else RESTART_S, faults)
    return replay(jobs, world, _made(policy, world), all_knowing=policy == "bound"), world


def _made(policy: str, world: World) -> Policy:
    match policy:
        case "fifo":
            return Fifo()
        case "backfill":
            return Backfill()
        case "srtf":
            return Shortest(RESTART_S)
        case "bound":
            return Shortest(0.0)
        case "llmos":
            return Planned(world.pool)
    raise UsageError(f"no policy `{policy[:40]}`: expected one of {', '.join(SCHEDULING)}", param="--policy")
