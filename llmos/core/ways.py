"""What a job could be asked for otherwise, so that it would start: its own part of ``explain``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from llmos.core import reasons
from llmos.core.running import left_high_s
from llmos.core.trials import Trials, World
from llmos.core.types import Gang, Job, Strategy

RUN_TIMES_S = (43200.0, 21600.0, 10800.0, 7200.0, 3600.0, 1800.0, 600.0, 300.0)
"""Run times that are tried: a job that says it is short may start beside those that wait for more room."""


@dataclass(frozen=True, slots=True)
class Way:
    """A change that would let the job start: what is changed (``kind``), and ``text``, a clause: "if it …"."""

    kind: str
    text: str


def of_itself(job: Job, world: World, trials: Trials, clock: Callable[[float, float], str]) -> Iterator[Way]:
    """What only needs time, then other requests, the smallest difference of each kind."""
    now = world.snapshot.now
    yield from _ending(world, trials)
    if now < job.not_before and trials.starts(world.with_job(replace(job, not_before=0.0))) == ():
        yield Way("pause", f"at {clock(job.not_before, now)} UTC, when its pause after failure {job.failures} is over")
    if job.after and trials.starts(world.with_job(replace(job, after=()))) == ():
        yield Way("after", f"once {names(job.after)}, which it comes after, has succeeded")
    for make in (_shorter, _smaller, _looser, _urgent):
        yield from make(job, world, trials)


def _ending(world: World, trials: Trials) -> Iterator[Way]:
    """Those that were asked to end have ended."""
    going = [a.job for a in world.snapshot.attempts.values() if a.alive and a.stopping_since is not None]
    if going and trials.starts(world.stopped(going)) == ():
        yield Way("ending", f"once {names(going)}, which {'is' if len(going) == 1 else 'are'} ending, has ended")


def _shorter(job: Job, world: World, trials: Trials) -> Iterator[Way]:
    """It declares a shorter run time."""
    times = [time for time in RUN_TIMES_S if time < left_high_s(job)]
    found = trials.best(
        times, lambda time: world.with_job(replace(job, estimate_s=job.run_s + time, estimate_high_s=None))
    )
    if found and not found[1]:
        yield Way("run_time", f"if it were expected to run for at most {_span(found[0])}")


def _smaller(job: Job, world: World, trials: Trials) -> Iterator[Way]:
    """It asks for less."""
    gangs = list(_smaller_gangs(job.gang))
    found = trials.best(gangs, lambda gang: world.with_job(replace(job, gang=gang, larger=())))
    if found:
        asked, enough = reasons.added(job.gang.bundles), reasons.added(found[0].bundles)
        kind, before, after = ("GPU", asked.gpus, enough.gpus) if asked.gpus else ("CPU", asked.cpus, enough.cpus)
        count = len(found[0].bundles)
        bundles = f" ({count} bundle{'s' * (count != 1)})" if len(job.gang.bundles) > 1 else ""
        less = f"{after:g} {kind}{'s' * (after != 1)} instead of {before:g}{bundles}"
        yield Way("size", f"if it asked for {less}{cost(found[1])}")


def _smaller_gangs(gang: Gang) -> Iterator[Gang]:
    """Gangs of fewer bundles, the largest first; of one bundle those of fewer GPUs, or CPUs where it has none."""
    step = max(gang.together, 1)
    count = len(gang.bundles)
    if count > step:
        yield from (replace(gang, bundles=gang.bundles[:n]) for n in range(count - step, 0, -step))
    elif count == 1:
        (bundle,) = gang.bundles
        for less in range(math.ceil(bundle.gpus or bundle.cpus) - 1, 0, -1):
            smaller = replace(bundle, gpus=float(less)) if bundle.gpus else replace(bundle, cpus=float(less))
            yield replace(gang, bundles=(smaller,))


def _looser(job: Job, world: World, trials: Trials) -> Iterator[Way]:
    """It cares less about where its bundles lie."""
    gang = job.gang
    choices = []
    if gang.topology:
        choices.append((replace(gang, topology=None), f"if it need not lie in one {gang.topology}"))
    if gang.labels:
        labels = ", ".join(f"{name}={values}" for name, values in gang.labels)
        choices.append((replace(gang, labels=()), f"if its nodes need not have {labels}"))
    if gang.strategy is Strategy.STRICT_PACK:
        choices.append((replace(gang, strategy=Strategy.PACK), "if it need not lie on one node"))
    for other, text in choices:
        found = trials.starts(world.with_job(replace(job, gang=other, larger=())))
        if found is not None:
            yield Way("place", text + cost(found))


def _urgent(job: Job, world: World, trials: Trials) -> Iterator[Way]:
    """It has a higher priority."""
    others = {one.priority + 1 for one in world.desired.jobs if one.id != job.id and one.priority >= job.priority}
    found = trials.best(sorted(others), lambda priority: world.with_job(replace(job, priority=priority)))
    if found:
        yield Way("priority", f"if its priority were {found[0]} instead of {job.priority}{cost(found[1])}")


def cost(ending: Sequence[str]) -> str:
    """Who would have to end for it, if anybody."""
    return f": {names(ending)} would have to end for it" if ending else ""


def names(ids: Sequence[str]) -> str:
    """``"a"``, ``"a and b"``, ``"a, b, c and 4 more"``."""
    shown, more = list(ids[:3]), len(ids) - 3
    shown += [f"{more} more"] if more > 0 else []
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _span(seconds: float) -> str:
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds / 60:g} min"
