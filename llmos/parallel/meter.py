"""What a rank waits for and sends, by kind, whoever communicates: our own code, FSDP, DTensor or a pipeline schedule.

All of them come through a few methods of torch's process groups and two functions, and those are wrapped while a meter
is open. Nothing in torch tells as much for as little: CommDebugMode looks at every operation of the model. A wait is
*exposed* communication, the time in which nothing is computed: the host's on CPUs (gloo), where the collective itself
goes on beside the computation; the stream's on GPUs (nccl), between two events.

On GPUs FSDP has streams wait for one another without any of these methods: its bytes are counted there, not its waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

KINDS = ("gradients", "fsdp", "tp", "pp", "other")
"""``gradients``: their sum over data-parallel ranks. ``fsdp``: gathering parameters, scattering gradients. ``tp``:
within layers. ``pp``: for the neighbours in a pipeline. ``other``: what ranks agree on."""

Mark = Any
"""A moment: ``time.perf_counter()`` on a CPU, an event of the current stream on a GPU."""
F = TypeVar("F", bound=Callable[..., Any])


class Span(NamedTuple):
    """Something took from ``began`` to ``ended``: a wait of one of KINDS, or a part of the step."""

    name: str
    began: Mark
    ended: Mark


@dataclass(frozen=True, slots=True)
class Record:
    """What a meter has seen: ``spans`` in the order of their ends, and bytes by kind."""

    spans: Sequence[Span] = ()
    sent_bytes: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))

    def then(self, later: Record) -> Record:
        """Both together."""
        sent = {kind: count + later.sent_bytes[kind] for kind, count in self.sent_bytes.items()}
        return Record([*self.spans, *later.spans], sent)


class Meter:
    """Records this process between :meth:`open` and :meth:`close`; there is one at a time."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: list[Span] = []
        self._sent: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self._kinds: dict[int, str] = {}  # of works that nobody has waited for yet, by id
        self._wrapped = ExitStack()

    def open(self) -> None:
        """Begin to look at what goes through torch.distributed."""
        self._wrap(_Open, "meter", self)
        for name, (kind, sent) in _COLLECTIVES.items():
            if method := getattr(ProcessGroup, name, None):
                self._wrap(ProcessGroup, name, self._issuing(method, kind, sent))
        self._wrap(dist.Work, "wait", self._waiting(dist.Work.wait))
        for names, sent in _FUNCTIONAL:
            name = next(name for name in names if hasattr(functional, name))
            self._wrap(functional, name, self._sending(getattr(functional, name), sent))
        self._wrap(functional, "wait_tensor", self._waiting_tensor(functional.wait_tensor))

    def close(self) -> None:
        """Look no more."""
        self._wrapped.close()

    def mark(self) -> Mark:
        """Now."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, began: Mark, ended: Mark) -> float:
        """From one mark to another. On a GPU this waits until both have happened."""
        if not self._on_gpu:
            return float(ended - began)
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1000

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """What happens inside is a span called ``name``."""
        began = self.mark()
        yield
        self._spans.append(Span(name, began, self.mark()))

    def take(self) -> Record:
        """All since the last time."""
        record = Record(self._spans, self._sent)
        self._spans, self._sent = [], dict.fromkeys(KINDS, 0.0)
        return record

    def forget(self) -> None:
        """Begin anew; nobody waits for what was issued before."""
        self.take()
        self._kinds.clear()

    def totals(self, spans: Sequence[Span]) -> dict[str, float]:
        """Seconds by name."""
        found: dict[str, float] = {}
        for name, began, ended in spans:
            found[name] = found.get(name, 0.0) + self.seconds(began, ended)
        return found

    def _wrap(self, owner: Any, name: str, wrapped: Any) -> None:
        # what the class holds, not what it gives: a method of C++'s would come back unbound
        self._wrapped.callback(setattr, owner, name, vars(owner)[name])
        setattr(owner, name, wrapped)

    def _issuing(self, method: F, kind: str, sent: Callable[..., float]) -> F:
        def issue(group: ProcessGroup, *args: Any, **options: Any) -> Any:
            work = method(group, *args, **options)
            if counted := _kind(kind):
                self._sent[counted] += sent(group, *args)
                self._kinds[id(work)] = counted
            return work

        return cast(F, issue)

    def _waiting(self, method: F) -> F:
        def wait(work: dist.Work, *args: Any, **options: Any) -> Any:
            kind = self._kinds.pop(id(work), None)
            if kind is None:
                return method(work, *args, **options)
            with self.span(kind):
                return method(work, *args, **options)

        return cast(F, wait)

    def _sending(self, function: F, sent: Callable[[Tensor, int], float]) -> F:
        def send(tensor: Tensor, *args: Any, **options: Any) -> Any:
            if counted := _kind("tp"):
                group = next(arg for arg in (*args, *options.values()) if not isinstance(arg, str | int))
                self._sent[counted] += sent(tensor, _ranks(group))
            return function(tensor, *args, **options)

        return cast(F, send)

    def _waiting_tensor(self, function: F) -> F:
        def wait(tensor: Tensor) -> Any:
            if (kind := _kind("tp")) is None:
                return function(tensor)
            with self.span(kind):
                return function(tensor)

        return cast(F, wait)


class _Open:
    meter: Meter | None = None


def part(name: str) -> AbstractContextManager[None]:
    """What happens inside is a part ``name`` of the step, for the meter that is open, if one is."""
    return _Open.meter.span(name) if _Open.meter else nullcontext()


@contextmanager
def counted_as(kind: str | None) -> Iterator[None]:
    """What this thread communicates inside is of ``kind``, whatever it would be otherwise; None: is not counted."""
    before = getattr(_thread, "kind", "")
    _thread.kind = kind
    try:
        yield
    finally:
        _thread.kind = before


_thread = threading.local()


def _kind(otherwise: str) -> str | None:
    kind: str | None = getattr(_thread, "kind", "")
    return otherwise if kind == "" else kind


def _bytes(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in ([tensors] if isinstance(tensors, Tensor) else tensors))


def _ranks(group: Any) -> int:
    if isinstance(group, tuple):
        return int(group[0].size(group[1]))
    return group.size() if isinstance(group, DeviceMesh | ProcessGroup) else len(group)


# Bytes that one rank of n sends when they go around in a ring, which sends as few as any way can.
# (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009)


def _of_sum(tensors: Any, n: int) -> float:
    return 2 * (n - 1) / n * _bytes(tensors)


def _of_gather(mine: Any, n: int) -> float:
    return float((n - 1) * _bytes(mine))


def _of_scatter(whole: Any, n: int) -> float:
    return (n - 1) / n * _bytes(whole)


_COLLECTIVES: Mapping[str, tuple[str, Callable[..., float]]] = {
    "allreduce": ("gradients", lambda group, tensors, *_: _of_sum(tensors, group.size())),
    **dict.fromkeys(
        ("_allgather_base", "all_gather_single"),
        ("fsdp", lambda group, _, mine, *__: _of_gather(mine, group.size())),
    ),
    **dict.fromkeys(
        ("_reduce_scatter_base", "reduce_scatter_single"),
        ("fsdp", lambda group, _, whole, *__: _of_scatter(whole, group.size())),
    ),
    "alltoall_base": ("tp", lambda group, _, whole, *__: _of_scatter(whole, group.size())),
    "send": ("pp", lambda _, tensors, *__: _bytes(tensors)),
    "recv": ("pp", lambda *_: 0.0),
    "_end_coalescing": ("pp", lambda *_: 0.0),  # nccl's sends and receives are waited for together
    "broadcast": ("other", lambda group, tensors, *_: _bytes(tensors) / group.size()),
    "allgather": ("other", lambda group, _, mine, *__: _of_gather(mine, group.size())),
}
"""Method of a process group → its kind unless someone says otherwise, and the bytes that a rank sends."""

_FUNCTIONAL: tuple[tuple[tuple[str, ...], Callable[[Tensor, int], float]], ...] = (
    (("all_gather_single", "all_gather_tensor"), _of_gather),
    (("reduce_scatter_single", "reduce_scatter_tensor"), _of_scatter),
    (("all_reduce",), _of_sum),
)
"""What DTensor calls, by its name in torch 2.13 and before, and the bytes that a rank sends."""
