"""The sentences that tell people why something waits, with the numbers that make them checkable."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from llmos.core.types import Gang, Job, Resources, Strategy

_LAYOUT = {Strategy.SPREAD: " on as many nodes as possible", Strategy.STRICT_PACK: " on one node"}


def amount(resources: Resources) -> str:
    """``"1 CPU and 2 GPUs"``; ``"nothing"`` when all amounts are 0."""
    parts = [_count(value, name) for value, name in ((resources.cpus, "CPU"), (resources.gpus, "GPU")) if value]
    if resources.memory_bytes:
        parts.append(f"{resources.memory_bytes / 2**30:.3g} GiB")
    parts += [f"{value:g} {name}" for name, value in resources.custom if value]
    return " and ".join(parts) or "nothing"


def gang_size(gang: Gang) -> str:
    """``"2 bundles of 1 CPU"``; unlike bundles are joined by ``+``."""
    first = gang.bundles[:1]
    alike = gang.bundles.count(*first) == len(gang.bundles) if first else False
    groups = {first[0]: len(gang.bundles)} if alike else Counter(gang.bundles)
    text = " + ".join(f"{n} bundle{'s' * (n != 1)} of {amount(bundle)}" for bundle, n in groups.items())
    text += f", every {gang.together} on one node" if gang.together > 1 else ""
    text += f" ({', '.join(f'{name}={values}' for name, values in gang.labels)})" if gang.labels else ""
    return text + _LAYOUT.get(gang.strategy, "") + (f" in one {gang.topology}" if gang.topology else "")


def no_room(gang: Gang, available: Resources, everything: Resources, nodes: int) -> str:
    """Why ``gang`` does not start now: what it needs, what is available of everything (of the kinds it asks for)."""
    wanted = added(gang.bundles)
    kinds = [(available.cpus, everything.cpus, "CPU")] if wanted.cpus else []
    kinds += [(available.gpus, everything.gpus, "GPU")] if wanted.gpus else []
    if wanted.memory_bytes:
        kinds.append((available.memory_bytes / 2**30, everything.memory_bytes / 2**30, "GiB"))
    have, has = dict(available.custom), dict(everything.custom)
    kinds += [(have.get(name, 0.0), has.get(name, 0.0), name) for name, value in wanted.custom if value]
    shown = ", ".join(f"{_count(max(now, 0.0), name)} free of {most:.4g}" for now, most, name in kinds)
    where = f" on {nodes} nodes" if nodes > 1 else ""
    return f"needs {gang_size(gang)}; {shown}{where}"


def never(gang: Gang, count: int, everything: Resources) -> str:
    """Why ``gang`` cannot start on this cluster of ``count`` nodes with ``everything``, whatever ends."""
    nodes = "its 1 node" if count == 1 else f"its {count} nodes"
    why = f"{nodes} ({amount(everything)} in all) cannot hold it" if count else "it has no node that takes work"
    return f"needs {gang_size(gang)}; cannot start on this cluster: {why}"


def beside_services(gang: Gang, left: Resources) -> str:
    """Why ``gang`` cannot start while the services are there, whatever else ends: they leave no more than ``left``."""
    return f"needs {gang_size(gang)}; cannot start while services hold their share: they leave {amount(left)}"


def lent(gang: Gang, left: Resources) -> str:
    """Why ``gang``, whose job may not be preempted, does not start on what services lend: ``left`` is not lent."""
    why = f"cannot start on what services lend, for it may not be preempted: {amount(left)} left"
    return f"needs {gang_size(gang)}; {why}"


def quarantined(gang: Gang, nodes: list[str]) -> str:
    """Why ``gang`` cannot start while ``nodes`` take no work because jobs failed there."""
    return f"needs {gang_size(gang)}; cannot start while {', '.join(nodes[:4])} take no work: jobs failed there"


def clock(at: float, now: float) -> str:
    """The time ``at`` (UTC): ``"14:05"``, with the day when that is not today's."""
    moment, today = time.gmtime(at), time.gmtime(now)
    same = moment[:3] == today[:3]
    return time.strftime("%H:%M" if same else "%Y-%m-%d %H:%M", moment)


def workers(count: int) -> str:
    """``"1 worker"``, ``"2 workers"``."""
    return f"{count} worker{'s' * (count != 1)}"


def held_back(job: Job, now: float) -> str:
    """Why a job that failed is not tried again yet."""
    return f"next attempt in {job.not_before - now:.0f} s, after failure {job.failures} (retries: {job.retries})"


def _count(value: float, name: str) -> str:
    return f"{value:.4g} {name}{'s' * (name in ('CPU', 'GPU') and value != 1)}"


def added(amounts: Iterable[Resources]) -> Resources:
    """All ``amounts`` together."""
    return sum(amounts, Resources())
