"""The ranks of a job as a grid, pp × dp × fsdp × tp, and this rank's place in it.

tp is innermost: its ranks talk within every layer, so they are neighbours, on one node where there are several. pp is
outermost: its ranks exchange one activation a micro-batch, which a slow link carries best. Rank
((p · dp + d) · fsdp + f) · tp + t stands at (p, d, f, t). dp and fsdp ranks read different data, tp and pp ranks the
same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from llmos.errors import UsageError
from llmos.parallel.meter import counted_as
from llmos.parallel.world import World, others_alive, share

AXES = ("pp", "dp", "fsdp", "tp")
"""From the outermost to the innermost."""


@dataclass(frozen=True, slots=True)
class Line:
    """The ranks along one axis, ``size`` of them, and this one's ``place``. ``group`` None stands for the whole job.

    What they sum is communication of ``kind``: see :mod:`llmos.parallel.meter`.
    """

    size: int = 1
    place: int = 0
    group: dist.ProcessGroup | None = None
    kind: str = "gradients"

    def share(self, count: int) -> range:
        """This rank's part of ``count`` items."""
        return share(count, self.place, self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """``tensor`` summed over the ranks, in place."""
        self.begin_sum(tensor)()
        return tensor

    def begin_sum(self, tensor: Tensor) -> Callable[[], None]:
        """Begin to sum ``tensor`` over the ranks, in place. Call what is returned before using it: it waits."""
        if self.size == 1 or not tensor.numel():
            return lambda: None
        with others_alive(), counted_as(self.kind):
            work = dist.all_reduce(tensor, group=self.group, async_op=True)

        def wait() -> None:
            with others_alive():
                work.wait()

        return wait


class RankMesh:
    """The grid of ``world``'s ranks. ``sizes`` and ``place`` have one number for each of AXES."""

    def __init__(self, world: World, *, dp: int = 1, fsdp: int = 1, tp: int = 1, pp: int = 1) -> None:
        """Raises UsageError unless the axes multiply to the number of ranks."""
        self.world = world
        self.sizes: Mapping[str, int] = {"pp": pp, "dp": dp, "fsdp": fsdp, "tp": tp}
        if math.prod(self.sizes.values()) != world.size:
            raise UsageError(
                f"a mesh of {self} needs {math.prod(self.sizes.values())} ranks: found {world.size}",
                hint="Change `mesh`, or run as many workers as it has ranks.",
                param="mesh",
            )
        places, rest = {}, world.rank
        for axis in reversed(AXES):
            rest, places[axis] = divmod(rest, self.sizes[axis])
        self.place: Mapping[str, int] = places

    def __str__(self) -> str:
        used = [f"{axis} {size}" for axis, size in self.sizes.items() if size > 1]
        return " × ".join(used) or "dp 1"

    @property
    def dp(self) -> int:
        """Copies of every parameter that read different data."""
        return self.sizes["dp"]

    @property
    def fsdp(self) -> int:
        """Ranks that share the parameters of a copy and read different data."""
        return self.sizes["fsdp"]

    @property
    def tp(self) -> int:
        """Ranks that share every layer."""
        return self.sizes["tp"]

    @property
    def pp(self) -> int:
        """Ranks that share the layers between them."""
        return self.sizes["pp"]

    @property
    def only_dp(self) -> bool:
        """Whether every rank holds the whole model."""
        return self.dp == self.world.size

    @property
    def readers(self) -> int:
        """How many ways the batch is split."""
        return self.dp * self.fsdp

    def share(self, count: int) -> range:
        """This rank's part of ``count`` items of a batch: the same for all that differ in tp and pp only."""
        return share(count, self.place["dp"] * self.fsdp + self.place["fsdp"], self.readers)

    @property
    def reports(self) -> bool:
        """Whether this rank speaks for its part of the batch: the tp ranks of the last stage all know its loss."""
        return self.place["tp"] == 0 and self.place["pp"] == self.pp - 1

    @cached_property
    def devices(self) -> DeviceMesh:
        """torch's view of the grid, with a process group for each line along an axis."""
        kind, sizes = self.world.device.type, tuple(self.sizes.values())
        lines = [axis for axis, size in self.sizes.items() if 1 < size < self.world.size]
        options: dict[int | str, Any] = {axis: _options(kind, self.world.timeout) for axis in lines}
        return init_device_mesh(kind, sizes, mesh_dim_names=AXES, backend_override=options)

    def line(self, axis: str) -> Line:
        """The ranks that differ from this one along ``axis`` only."""
        size = self.sizes[axis]
        whole = size in (1, self.world.size)
        kind = "gradients" if axis == "dp" else axis
        return Line(size, self.place[axis], None if whole else self.devices[axis].get_group(), kind)

    def ranks(self, axis: str) -> Sequence[int]:
        """The ranks of :meth:`line`, in order, by their numbers in the job."""
        group = self.line(axis).group
        return dist.get_process_group_ranks(group) if group else range(self.world.size)


def _options(kind: str, timeout: timedelta) -> Any:
    """Of the process group of a line: as long as the whole job's, a collective may take."""
    options: Any = dist.ProcessGroupNCCL.Options() if kind == "cuda" else dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timeout
    return options
