"""``llmos simulate openb``: pods arrive one by one and stay; what share of the GPUs is given out in the end.

Online, without looking ahead and without moving anything; a pod that fits nowhere is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

import numpy as np

from llmos.errors import UsageError
from llmos.sim import PLACING
from llmos.sim.descent import Descent, Outlooks
from llmos.sim.fragmentation import Fragmentation, Waste, typical
from llmos.sim.openb import Machine, Pod, Shape, arrivals
from llmos.sim.packing import Packing
from llmos.sim.policies import BestFit, Policy, Random

_SAME = 1e-9
"""Costs that differ by less are the same: sums of the same numbers in another order."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one replay ended.

    ``allocated_pct`` of all GPUs are given out. ``arrived`` pods came, ``dropped`` of them fitted nowhere.
    ``fragmented_pct`` is the share of the GPUs that is free and expected to be a fragment (see Fragmentation).
    """

    seed: int
    allocated_pct: float
    fragmented_pct: float
    arrived: int
    dropped: int


class Replay:
    """Replays the pods of a trace on its nodes. What is worked out for one seed is used for the next."""

    def __init__(self, machines: Sequence[Machine], pods: Sequence[Pod]) -> None:
        self._machines = tuple(machines)
        self._pods = tuple(pods)
        self._shapes = [pod.shape for pod in pods]
        self._fragmentation = Fragmentation(typical(self._shapes))
        self._outlooks: dict[str, Outlooks] = {}

    def run(self, policy: str, ratio: float, seed: int) -> Outcome:
        """Replays once. The pods that arrive depend on the ``seed`` alone, not on the ``policy``. Raises DataError."""
        packing = Packing(self._machines)
        coming = arrivals(self._pods, ratio, packing.capacity_milli, np.random.default_rng(seed))
        rng = np.random.default_rng((seed, 1))
        dropped = pack(packing, self._policy(policy, packing, rng), coming, rng)
        return Outcome(seed, packing.allocated_pct, self._fragmented_pct(packing), len(coming), dropped)

    def _policy(self, name: str, packing: Packing, rng: np.random.Generator) -> Policy:
        """Raises UsageError for a policy that is not known."""
        if name == "random":
            return Random(packing, rng)
        if name == "bestfit":
            return BestFit(packing)
        if name not in PLACING:
            raise UsageError(f"no policy `{name[:40]}`: expected one of {', '.join(PLACING)}", param="--policy")
        if name not in self._outlooks:
            loss = self._fragmentation if name == "fgd" else Waste(self._fragmentation, self._shapes)
            self._outlooks[name] = Outlooks(self._shapes, loss)
        return Descent(packing, self._outlooks[name], scored=name == "fgd")

    def _fragmented_pct(self, packing: Packing) -> float:
        models = np.array(packing.models)
        lost = 0.0
        for model in dict.fromkeys(packing.models):
            of_model = np.flatnonzero(models == model)
            lost += self._fragmentation.of(model, packing.cpu_milli[of_model], packing.free_milli[of_model]).sum()
        return 100 * lost / max(1, packing.capacity_milli)


def pack(packing: Packing, policy: Policy, coming: Iterable[Shape], rng: np.random.Generator) -> int:
    """Put what comes onto nodes, in order. Returns how many were dropped."""
    dropped = 0
    for shape in coming:
        able = np.flatnonzero(packing.fits(shape))
        if not len(able):
            dropped += 1
            continue
        costs = policy.costs(shape)[able]
        cheapest = able[costs <= costs.min() + _SAME]
        node = int(cheapest[rng.integers(len(cheapest))])
        packing.take(shape, node, policy.gpus(shape, node))
        policy.changed(node)
    return dropped


def report(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Means over the seeds, and how far they spread."""
    allocated = [outcome.allocated_pct for outcome in outcomes]
    return {
        "allocated_pct": fmean(allocated),
        "allocated_pct_sd": pstdev(allocated),
        "fragmented_pct": fmean(outcome.fragmented_pct for outcome in outcomes),
        "arrived": fmean(outcome.arrived for outcome in outcomes),
        "dropped": fmean(outcome.dropped for outcome in outcomes),
    }
