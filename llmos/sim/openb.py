"""Alibaba's GPU trace of 2023 ("openb"): nodes and pods, and more pods drawn from them.

Files of the family differ: a column may be missing or empty. An amount that a node does not state is not limited, one
that a pod does not state is not needed; a pod that states GPUs and no share of them needs them whole. ``gpu_spec``
``A|B`` allows these models only, an empty one allows all. Weng et al., "Beware of Fragmentation", USENIX ATC 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmos.errors import DataError
from llmos.sim.tables import Fields, Malformed, Table, read_csv

WHOLE = 1000
"""Thousandths of a GPU."""
UNLIMITED = 2**40
MOST_GPUS = 64


@dataclass(frozen=True, slots=True)
class Machine:
    """A node: cores in thousandths, memory in MiB, and GPUs of one model."""

    name: str
    cpu_milli: int
    memory_mib: int
    gpus: int
    model: str = ""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a pod needs of one node: ``milli`` thousandths of each of ``gpus`` GPUs, of ``models`` if it says any."""

    cpu_milli: int
    memory_mib: int
    gpus: int
    milli: int
    models: frozenset[str] = frozenset()

    @property
    def gpu_milli(self) -> int:
        """Thousandths of a GPU, over all of its GPUs."""
        return self.gpus * self.milli


@dataclass(frozen=True, slots=True)
class Pod:
    name: str
    shape: Shape
    created_s: float


def read_nodes(path: Path, *, skip_bad_rows: bool = False) -> Table[Machine]:
    """The nodes in the CSV file at ``path``. Raises NotFoundError, DataError."""
    return read_csv(path, ("sn", "gpu"), _machine, skip_bad_rows=skip_bad_rows)


def read_pods(path: Path, *, skip_bad_rows: bool = False) -> Table[Pod]:
    """The pods in the CSV file at ``path``, by the time they were created. Raises NotFoundError, DataError."""
    table = read_csv(path, ("name", "num_gpu"), _pod, skip_bad_rows=skip_bad_rows)
    return Table(tuple(sorted(table.rows, key=lambda pod: pod.created_s)), table.bad)  # stable: ties as in the file


def _machine(row: Fields) -> Machine:
    return Machine(
        row.text("sn"),
        row.whole("cpu_milli", UNLIMITED),
        row.whole("memory_mib", UNLIMITED),
        row.whole("gpu", 0, most=MOST_GPUS),
        row.text("model"),
    )


def _pod(row: Fields) -> Pod:
    gpus = row.whole("num_gpu", 0, most=MOST_GPUS)
    milli = row.whole("gpu_milli", WHOLE if gpus else 0, most=WHOLE)
    if bool(gpus) != bool(milli):
        raise Malformed(f"num_gpu is {gpus} and gpu_milli {milli}: expected both or none")
    models = frozenset(filter(None, (name.strip() for name in row.text("gpu_spec").split("|"))))
    shape = Shape(row.whole("cpu_milli", 0), row.whole("memory_mib", 0), gpus, milli, models)
    return Pod(row.text("name"), shape, row.number("creation_time", 0.0))


def arrivals(pods: Sequence[Pod], ratio: float, capacity_milli: int, rng: np.random.Generator) -> list[Shape]:
    """What arrives, one after the other, until it asks for ``ratio`` of ``capacity_milli`` thousandths of a GPU in all.

    Every pod once and then pods drawn again, with replacement, in random order, as in the paper's simulator; a part of
    the pods when they ask for more than that. Raises DataError when no pod needs a GPU.
    """
    shapes = [pod.shape for pod in pods]
    if not any(shape.gpus for shape in shapes):
        raise DataError("no pod needs a GPU: expected pods that ask for some", hint="Is this a trace of pods?")
    wanted = ratio * capacity_milli
    asked = sum(shape.gpu_milli for shape in shapes)
    while asked < wanted:
        shapes.append(shapes[rng.integers(len(pods))])
        asked += shapes[-1].gpu_milli
    shuffled = [shapes[i] for i in rng.permutation(len(shapes))]
    while asked - shuffled[-1].gpu_milli >= wanted:
        asked -= shuffled.pop().gpu_milli
    return shuffled
