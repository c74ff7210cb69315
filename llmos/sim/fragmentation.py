"""Expected fragmentation of a node's GPUs (Weng et al., USENIX ATC 2023, section 4).

To a pod that a node cannot take, all that is free of the node's GPUs is a fragment; to one that it can take, what is
free of those GPUs that have less left than the pod needs of one. The expectation is over the typical pods of the
workload, each as likely as it is frequent there.

That looks at the next pod only. :class:`Waste` adds what later ones will miss: cores for the GPUs that are left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmos.sim.openb import Shape

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Kind:
    """What tells pods apart here: memory does not, it is never what a GPU lies idle for."""

    cpu_milli: int
    gpus: int
    milli: int
    models: frozenset[str]

    @classmethod
    def of(cls, shape: Shape) -> Kind:
        return cls(shape.cpu_milli, shape.gpus, shape.milli, shape.models)


def typical(shapes: Iterable[Shape]) -> dict[Kind, float]:
    """Each kind of pod among ``shapes``, and how likely one is of that kind."""
    counts = Counter(map(Kind.of, shapes))
    return {kind: count / counts.total() for kind, count in counts.items()}


class Fragmentation:
    """The expected fragmentation of nodes, for one set of typical pods."""

    def __init__(self, kinds: dict[Kind, float]) -> None:
        self._kinds = tuple(kinds)
        self._weights = np.array(list(kinds.values()))
        self._cpu = np.array([kind.cpu_milli for kind in kinds], dtype=np.int64)
        self._gpus = np.array([kind.gpus for kind in kinds], dtype=np.int64)
        self._levels, self._level = np.unique([kind.milli for kind in kinds], return_inverse=True)

    def of(self, model: str, cpu_milli: Ints, free_milli: Ints) -> Floats:
        """Thousandths of a GPU [S] that are expected to be fragments, in S states of one node with GPUs of ``model``.

        ``cpu_milli`` [S] is what is free of its cores, ``free_milli`` [S, G] what is free of each GPU.
        """
        allowed = np.array([not kind.models or model in kind.models for kind in self._kinds])
        enough = free_milli[:, :, None] >= self._levels  # [S, G, L]
        total = free_milli.sum(1)
        usable = (free_milli[:, :, None] * enough).sum(1)[:, self._level]  # [S, K]
        can = (enough.sum(1)[:, self._level] >= self._gpus) & (cpu_milli[:, None] >= self._cpu) & allowed
        can &= self._gpus > 0  # a pod without a GPU uses none of what is free
        fragments: Floats = total - np.where(can, usable, 0) @ self._weights
        return fragments


class Waste:
    """Expected fragmentation, and the GPUs that are stranded: free ones for which too few cores are left.

    Pods that need a GPU need so many cores for it on average (``cores_per_gpu``, both in thousandths). What is free of
    a node's GPUs beyond that share of its free cores will lie idle in the end, although each pod by itself would still
    fit. So pods that need many cores, or no GPU, go where cores abound.
    """

    def __init__(self, fragmentation: Fragmentation, shapes: Iterable[Shape]) -> None:
        users = [shape for shape in shapes if shape.gpus]
        self._fragmentation = fragmentation
        self.cores_per_gpu = sum(shape.cpu_milli for shape in users) / max(1, sum(shape.gpu_milli for shape in users))

    def of(self, model: str, cpu_milli: Ints, free_milli: Ints) -> Floats:
        """Thousandths of a GPU [S] that are expected to be lost, arguments as those of Fragmentation."""
        lost = self._fragmentation.of(model, cpu_milli, free_milli)
        if not self.cores_per_gpu:
            return lost
        stranded: Floats = np.maximum(0.0, free_milli.sum(1) - cpu_milli / self.cores_per_gpu)
        return lost + stranded
