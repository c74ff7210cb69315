"""What would let a waiting job start now.

Nothing here knows a rule of the scheduler: ``plan`` itself is asked again and again, each time with one thing changed
(``trials``), and what is reported are changes after which it starts the job. The number of plans is bounded, and on a
very large cluster few or none are made, which is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from llmos.core import reasons
from llmos.core.plan import plan
from llmos.core.running import left_s
from llmos.core.standing import Standing
from llmos.core.trials import Trials, World
from llmos.core.types import Desired, Job, Plan, Snapshot
from llmos.core.ways import Way, of_itself
from llmos.core.ways_of_others import of_others

MOST_TRIALS = 48
"""So many plans are made at most for one question."""
WORK = 600_000
"""The nodes and unfinished jobs of all these plans together are at most so many: some seconds."""
FEWEST_TRIALS = 4
"""Where not even so many plans can be afforded, none is made."""
DEEP = 20_000
"""A job whose turn is later than that gets no estimate even when it is asked for."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """Why a job waits, when it is expected to start (median, with nine chances of ten), its turn (None: far back)."""

    reason: str
    estimate: tuple[float, float] | None
    turn: int | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """``ways`` are changes after each of which the job would start, the cheapest first.

    ``release`` is when the next running job is expected to end, and which that is. ``trials`` plans were made;
    ``limited`` says why not more, if there were more to try.
    """

    outlook: Outlook
    ways: tuple[Way, ...]
    release: tuple[float, str] | None
    trials: int
    limited: str


def outlook(job: Job, desired: Desired, snapshot: Snapshot, made: Plan, standing: Standing) -> Outlook:
    """How things are for ``job``, which waits. ``made`` is the plan for ``desired`` and ``snapshot``: a job that waits
    too far back to have been looked at is, if it is among the first 20,000."""
    turn = standing.turn(job.id, DEEP)
    if job.id not in made.estimates and turn and turn > desired.tried:
        made = plan(_deeper(desired, turn), snapshot, made.memo)
    return Outlook(made.waiting.get(job.id, ""), made.estimates.get(job.id), turn)


def explain(job: Job, desired: Desired, snapshot: Snapshot, made: Plan, standing: Standing) -> Explanation:
    """What would let ``job``, which waits, start now. ``made`` is the plan for ``desired`` and ``snapshot``."""
    now = outlook(job, desired, snapshot, made, standing)
    size = len(snapshot.nodes) + len(desired.jobs)
    most = min(MOST_TRIALS, WORK // max(size, 1))
    release = next_release(standing, snapshot.now)
    large = f"the cluster is large ({len(snapshot.nodes):,} nodes, {len(desired.jobs):,} jobs)"
    if most < FEWEST_TRIALS or now.turn is None:
        why = large if most < FEWEST_TRIALS else f"its turn is not among the next {DEEP:,}"
        return Explanation(now, (), release, 0, f"nothing was tried: {why}")
    world = World(_deeper(desired, now.turn), snapshot)
    trials = Trials(job.id, world, made.memo, most)
    ways = tuple(_ways(job, world, trials, standing, made.quarantined))
    limited = f"only {most} changes were tried" + (f": {large}" if most < MOST_TRIALS else "") if trials.spent else ""
    return Explanation(now, ways, release, trials.made, limited)


def next_release(standing: Standing, now: float) -> tuple[float, str] | None:
    """When the next running job is expected to end, and which one it is."""
    ends = ((job.opened_at + left_s(job), id) for id, (job, _) in standing.running.items())
    return min((end for end in ends if now < end[0] < float("inf")), default=None)


def _ways(job: Job, world: World, trials: Trials, standing: Standing, closed: Mapping[str, str]) -> Iterator[Way]:
    yield from of_itself(job, world, trials, reasons.clock)
    yield from of_others(job, world, trials, standing, closed)


def _deeper(desired: Desired, turn: int) -> Desired:
    """The same with all jobs until that ``turn`` looked at."""
    return replace(desired, tried=max(desired.tried, turn))
