"""What each rank has measured of a step, as numbers that travel with the sum of the gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields

from llmos.parallel.meter import KINDS


@dataclass(frozen=True, slots=True)
class RankStep:
    """What one rank did from one sum of gradients to the next, evaluation and checkpoints left out.

    ``step_s`` is all of it. ``data_wait_s``: waiting for samples. ``pipeline_s``: in the schedule of a pipeline, its
    waits included. ``wait_*_s`` and ``sent_*_bytes``: exposed communication and bytes sent, by kind
    (:data:`llmos.parallel.meter.KINDS`). ``memory_bytes`` is what the rank holds, ``memory_peak_bytes`` the most it
    has held: of the GPU's memory that torch has given out, or of the process's memory.
    """

    step_s: float = 0.0
    data_wait_s: float = 0.0
    pipeline_s: float = 0.0
    memory_bytes: float = 0.0
    memory_peak_bytes: float = 0.0
    wait_gradients_s: float = 0.0
    wait_fsdp_s: float = 0.0
    wait_tp_s: float = 0.0
    wait_pp_s: float = 0.0
    wait_other_s: float = 0.0
    sent_gradients_bytes: float = 0.0
    sent_fsdp_bytes: float = 0.0
    sent_tp_bytes: float = 0.0
    sent_pp_bytes: float = 0.0
    sent_other_bytes: float = 0.0

    @property
    def comm_wait_s(self) -> float:
        """Waiting for other ranks, whatever for."""
        return float(sum(getattr(self, f"wait_{kind}_s") for kind in KINDS))

    @property
    def own_s(self) -> float:
        """What the rank did by itself, without waiting for others: all ranks take equally long for a step, and the slow
        one is the one that works longest."""
        return self.step_s - self.comm_wait_s

    @classmethod
    def of(cls, measured: Mapping[str, float]) -> RankStep:
        """From what has been measured, by name; what has not been is 0."""
        return cls(**{name: measured.get(name, 0.0) for name in NAMES})


NAMES = tuple(field.name for field in fields(RankStep))


def outgoing(mine: RankStep, rank: int, ranks: int) -> list[float]:
    """``mine`` in its place among those of all ``ranks``, zeros elsewhere: the sum over ranks is what each has said."""
    size = len(NAMES)
    numbers = [0.0] * (ranks * size)
    numbers[rank * size : (rank + 1) * size] = astuple(mine)
    return numbers


def incoming(numbers: Sequence[float]) -> list[RankStep]:
    """The ranks' steps, in the order of ranks, from the sum of what was outgoing."""
    size = len(NAMES)
    return [RankStep(*numbers[start : start + size]) for start in range(0, len(numbers), size)]
