"""Measures the steps of training: each rank itself, all ranks each other, at the cost of a few numbers in a sum.

What a rank measures from one sum of gradients to the next travels with the second one, so every rank knows it of every
rank and nobody waits for it. On one core of a busy machine, the best of thirty: 0.19 ms a step for eight ranks, and
1.5 µs for each part of it.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence

import psutil
import torch

from llmos.parallel.meter import KINDS, Meter, Record, Span
from llmos.parallel.world import World
from llmos.train.rank_step import NAMES, RankStep, incoming, outgoing

_RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024  # of getrusage's ru_maxrss


class Telemetry:
    """Measures this rank from :meth:`open` to :meth:`close`, in steps: begin, outgoing, incoming, end.

    ``ranks`` has what each rank measured last, in the order of ranks. ``spans`` is this rank's newest whole step,
    ``data_wait_s`` how long it has waited for its samples.
    """

    def __init__(self, world: World) -> None:
        self.ranks: list[RankStep] = []
        self.spans: list[Span] = []
        self.data_wait_s = 0.0
        self.meter = Meter(world.device)
        self._world, self._process = world, psutil.Process()
        self._tail = Record()
        self._began_s, self._tail_s = 0.0, 0.0

    @property
    def riders(self) -> int:
        """How many numbers :meth:`outgoing` has."""
        return len(NAMES) * self._world.size

    def open(self) -> None:
        self.meter.open()

    def close(self) -> None:
        self.meter.close()

    def begin(self) -> None:
        """A step begins. What happened since the last one ended does not count."""
        self.meter.forget()
        self.spans, self._began_s = [], time.perf_counter()

    def outgoing(self) -> list[float]:
        """What this rank has measured since the last time, to be summed over all ranks."""
        now_s, record = time.perf_counter(), self.meter.take()
        self.spans += record.spans
        measured = self._measured(self._tail.then(record), self._tail_s + now_s - self._began_s)
        self._began_s = now_s
        return outgoing(RankStep.of(measured), self._world.rank, self._world.size)

    def incoming(self, numbers: Sequence[float]) -> None:
        """The sums of :meth:`outgoing`."""
        self.ranks = incoming(numbers)

    def end(self) -> None:
        """The step has ended; what it did since :meth:`outgoing` is part of the next row."""
        self._tail, self._tail_s = self.meter.take(), time.perf_counter() - self._began_s
        self.spans += self._tail.spans

    def _measured(self, record: Record, step_s: float) -> dict[str, float]:
        seconds = self.meter.totals(record.spans)
        memory_bytes, peak_bytes = self._memory()
        return {
            **{"step_s": step_s, "data_wait_s": self.data_wait_s, "pipeline_s": seconds.get("pipeline", 0.0)},
            **{"memory_bytes": memory_bytes, "memory_peak_bytes": peak_bytes},
            **{f"wait_{kind}_s": seconds.get(kind, 0.0) for kind in KINDS},
            **{f"sent_{kind}_bytes": sent for kind, sent in record.sent_bytes.items()},
        }

    def _memory(self) -> tuple[float, float]:
        """Bytes that this rank holds, and the most it has held."""
        device = self._world.device
        if device.type == "cuda":
            return float(torch.cuda.memory_allocated(device)), float(torch.cuda.max_memory_allocated(device))
        now = self._process.memory_info().rss
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT_BYTES
        return float(now), float(max(now, peak))  # the kernel brings its own peak up to date now and then only


def summary(ranks: Sequence[RankStep]) -> dict[str, float]:
    """One row about all ``ranks``: the longest wait for data, the mean exposed communication and bytes sent of a rank,
    both by kind where there was any, the most memory of a rank; for a pipeline its bubble.

    The bubble is the share of the pipeline's time, over all its ranks, in which a rank waits for its neighbours, or for
    the others to come to their end: (p - 1)/(m + p - 1) for 1F1B with equal stages.
    """
    row = {"data_wait_s": max(rank.data_wait_s for rank in ranks)}
    row |= {"memory_bytes": max(rank.memory_bytes for rank in ranks)}
    row |= {"memory_peak_bytes": max(rank.memory_peak_bytes for rank in ranks)}
    names = [f"wait_{kind}_s" for kind in KINDS] + [f"sent_{kind}_bytes" for kind in KINDS]
    means = {name: sum(getattr(rank, name) for rank in ranks) / len(ranks) for name in names}
    if len(ranks) > 1:
        row["comm_wait_s"] = sum(rank.comm_wait_s for rank in ranks) / len(ranks)
    row |= {name: mean for name, mean in means.items() if mean}
    if longest_s := max(rank.pipeline_s for rank in ranks):
        working_s = sum(rank.pipeline_s - rank.wait_pp_s for rank in ranks) / len(ranks)
        row["bubble"] = 1 - working_s / longest_s
    return row
