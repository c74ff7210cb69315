"""The ranks of a job: who am I, what is my share, and how do all of us agree on something small.

Rank arithmetic lives here and nowhere else. Nothing travels as a pickle: values are numbers or JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llmos.errors import LlmosError, WorkerLost, from_json
from llmos.parallel.meter import counted_as


def share(count: int, index: int, parts: int) -> range:
    """Part ``index`` of ``count`` items. Parts are contiguous, in order, and differ by at most 1."""
    return range(count * index // parts, count * (index + 1) // parts)


@dataclass(frozen=True, slots=True)
class World:
    """One rank's view of its job: its number, how many there are, its number on this node, its device.

    ``group`` is the process group they talk over (None: the default one).
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a device is an immutable value
    group: dist.ProcessGroup | None = None

    @classmethod
    def current(cls) -> World:
        """The world of the initialized default process group, or a world of one.

        The process group's backend tells the device: nccl ranks compute on GPU ``LOCAL_RANK``, gloo ranks on the CPU.
        Alone, the GPU is used when there is one.
        """
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if not dist.is_initialized():
            return cls(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        on_gpu = dist.get_backend() == "nccl"
        # Ray shows each worker its own GPUs only, so its index may be beyond those that are visible
        device = torch.device("cuda", local_rank % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
        return cls(dist.get_rank(), dist.get_world_size(), local_rank, device)

    def apart(self) -> World:
        """The same ranks in a gloo group of their own, for a thread that talks while this world does. Collective."""
        group = dist.new_group(backend="gloo", timeout=self.timeout) if self.size > 1 else None
        return replace(self, device=torch.device("cpu"), group=group)

    @property
    def timeout(self) -> timedelta:
        """How long a collective may take: what the default process group was given. Groups that are made later are to
        be given it too, or they would have torch's own."""
        options = dist.distributed_c10d._get_default_group()._get_backend(self.device).options
        return options._timeout

    @property
    def first(self) -> bool:
        """Whether this rank does what only one should: write files, talk."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This rank's part of ``count`` items, in the order of ranks: see :func:`share`."""
        return share(count, self.rank, self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """``tensor`` summed over all ranks, in place."""
        if self.size > 1:
            with others_alive(), self._counted():
                dist.all_reduce(tensor, group=self.group)
        return tensor

    def total(self, values: Sequence[float]) -> list[float]:
        """Each of ``values`` summed over all ranks, in double precision."""
        return [float(value) for value in self.sum(torch.tensor(values, dtype=torch.float64, device=self.device))]

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What ``make()`` returns on rank 0 (JSON-able), on every rank; the others wait.

        When it raises on rank 0, every rank raises: the same LlmosError, or a WorkerLost that names what happened.
        """
        if self.size == 1:
            return make()
        if not self.first:
            return _open(json.loads(self._broadcast(b"")))
        try:
            value = make()
        except BaseException as error:
            self._broadcast(json.dumps({"error": _describe(error)}).encode())
            raise
        self._broadcast(json.dumps({"value": value}).encode())
        return value

    def from_all(self, make: Callable[[], Any]) -> list[Any]:
        """What ``make()`` returns on each rank (JSON-able), in the order of ranks, on every rank.

        When it raises on some ranks, every rank raises what the lowest of them did, as with :meth:`from_first`.
        """
        if self.size == 1:
            return [make()]
        try:
            message = {"value": make()}
        except BaseException as error:
            self._gather(json.dumps({"error": _describe(error, self.rank)}).encode())
            raise
        return [_open(json.loads(payload)) for payload in self._gather(json.dumps(message).encode())]

    def _counted(self) -> AbstractContextManager[None]:
        """A step does not wait for what ranks say beside it, :meth:`apart`."""
        return counted_as("other" if self.group is None else None)

    def _gather(self, payload: bytes) -> list[bytes]:
        """Every rank's ``payload``."""
        lengths = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        lengths[self.rank] = len(payload)
        sizes = self.sum(lengths).tolist()
        rows = torch.zeros(self.size, max(sizes), dtype=torch.uint8, device=self.device)
        rows[self.rank, : len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        with others_alive(), self._counted():
            dist.all_gather(list(rows), rows[self.rank].clone(), group=self.group)
        return [bytes(row[:size].cpu().numpy()) for row, size in zip(rows, sizes, strict=True)]

    def _broadcast(self, payload: bytes) -> bytes:
        """Rank 0's ``payload``."""
        length = torch.tensor([len(payload)], device=self.device)
        with others_alive(), self._counted():
            dist.broadcast(length, src=0, group=self.group)
            buffer = torch.empty(int(length), dtype=torch.uint8, device=self.device)
            if self.first:
                buffer.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
            dist.broadcast(buffer, src=0, group=self.group)
        return bytes(buffer.cpu().numpy())


_BACKENDS = ("gloo", "nccl", "timed out", "connection", "socket")
"""Words in the messages of communication that failed, in lower case."""


@contextmanager
def others_alive() -> Iterator[None]:
    """Turns the RuntimeError that a collective raises when another rank's process is gone into a WorkerLost.

    Computation may stand inside as well: its errors pass unchanged.
    """
    try:
        yield
    except RuntimeError as error:
        reasons = [str(link).splitlines()[0] for link in _causes(error) if str(link)]
        for reason in reasons:
            if any(word in reason.lower() for word in _BACKENDS):
                raise WorkerLost(f"another rank is gone: {reason}", hint="Its own output says why.") from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _describe(error: BaseException, rank: int = 0) -> dict[str, str | None]:
    if not isinstance(error, LlmosError):
        error = WorkerLost(f"rank {rank} failed: {type(error).__name__}: {error}")
    return error.to_json()


def _open(message: dict[str, Any]) -> Any:
    """The value in ``message``; raises the error in it."""
    if "error" not in message:
        return message["value"]
    raise from_json(message["error"])
