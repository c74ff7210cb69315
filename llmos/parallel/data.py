"""Data parallelism: every rank holds the whole model and a share of the batch; gradients are summed once a step.

All gradients lie in one buffer, in the order in which a backward pass completes them, last layer first. The buffer is
cut into buckets; the sum of a bucket over the ranks begins as soon as its gradients are complete, while the backward
pass goes on with earlier layers (Li et al., "PyTorch Distributed", arXiv 2006.15704, section 3.2). There are no copies,
and numbers that ranks must agree on each step (the loss, whether to stop) ride along with the last bucket for free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate

from llmos.parallel.mesh import RankMesh

BUCKET_BYTES = 25 * 2**20
"""As DistributedDataParallel's: large enough that a collective's start costs nothing, small enough to begin early."""
_ALIGNMENT = 16
"""Elements: gradients begin on 64-byte boundaries, where vector kernels are fastest and give the same sums each run."""


class GradientBuffer:
    """Owns the gradients of ``parameters``. Autograd adds to them in place; :meth:`sum` ends a step's backward.

    Micro-batches need no communication: call ``backward`` as often as needed, then :meth:`sum` once. Losses must be
    scaled so that their sum over micro-batches and ranks is the loss of the step. Gradients are fp32 whatever the type
    of the parameters. Under tensor parallelism, gradients of parameters that every tp rank holds whole (norms) are
    summands until then; they lie at the end of the buffer, with the last bucket.

    Who says :meth:`last_pass` or :meth:`complete` in time has buckets summed beside the backward pass. It must say so
    on all ranks or none; buckets are summed in one order everywhere, whenever their parts are complete.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        mesh: RankMesh,
        riders: int = 0,
        reduction: torch.dtype = torch.float32,
    ) -> None:
        """``riders``: how many float32 numbers travel with the gradients, which are summed in type ``reduction``."""
        self._parameters, self._reduction = parameters, reduction
        self._copies, self._parts = mesh.line("dp"), mesh.line("tp")
        # last ones first: so the backward pass completes them, tied embeddings at its very end
        order = sorted(range(len(parameters)), key=lambda i: (_copied(parameters[i]), -i))
        sizes = [-(-_size(parameters[i]) // _ALIGNMENT) * _ALIGNMENT for i in order]
        self._flat = torch.zeros(sum(sizes) + riders, device=mesh.world.device)
        gradients, self._riders = self._flat.split([sum(sizes), riders])
        copied = sum(size for i, size in zip(order, sizes, strict=True) if _copied(parameters[i]))
        self._summands = gradients[sum(sizes) - copied :]
        self.local = [self._flat] * len(parameters)
        """This rank's part of each gradient."""
        for i, part in zip(order, gradients.split(sizes), strict=True):
            self.local[i] = part[: _size(parameters[i])].view(_shape(parameters[i]))
        self._attached = [_attached(p, part) for p, part in zip(parameters, self.local, strict=True)]
        early = [(parameters[i], size) for i, size in zip(order, sizes, strict=True) if not _copied(parameters[i])]
        self._buckets = _cut(early, BUCKET_BYTES // 4)
        self._bucket_of = {id(p): number for number, bucket in enumerate(self._buckets) for p in bucket.parameters}
        if len(self._buckets) > 1 and self._copies.size > 1:
            for parameter in parameters:
                parameter.register_post_accumulate_grad_hook(self._accumulated)
        self.zero()

    def zero(self) -> None:
        """Forget the last step's gradients."""
        self._flat.zero_()
        self._last: set[int] = set()
        self._missing = [{id(p) for p in bucket.parameters} for bucket in self._buckets]
        self._waits: list[Callable[[], None]] = []
        for parameter, gradient in zip(self._parameters, self._attached, strict=True):
            parameter.grad_dtype = torch.float32
            parameter.grad = gradient

    @property
    def begun(self) -> int:
        """How many buckets are being summed, or have been, in this step."""
        return len(self._waits)

    def last_pass(self, parameters: Iterable[nn.Parameter]) -> None:
        """The backward pass that begins now is the step's last one through ``parameters``."""
        self._last |= {id(parameter) for parameter in parameters}

    def complete(self, parameters: Iterable[nn.Parameter]) -> None:
        """Nothing more will be added to the gradients of ``parameters`` in this step."""
        for parameter in parameters:
            self._done(parameter)

    def sum(self, riders: Sequence[float | Tensor] = ()) -> list[float]:
        """Sum all gradients, and ``riders``, over the data-parallel ranks. Returns the sums of ``riders``."""
        self._riders.copy_(torch.tensor([0.0 if isinstance(rider, Tensor) else rider for rider in riders]))
        for i, rider in enumerate(riders):
            if isinstance(rider, Tensor):  # a GPU's is not waited for
                self._riders[i] = rider
        if self._summands.numel():
            self._parts.sum(self._summands)
        while self.begun < len(self._buckets):
            self._begin_next()
        for wait in self._waits:
            wait()
        summed: list[float] = self._riders.tolist()
        return summed

    def _accumulated(self, parameter: nn.Parameter) -> None:
        if id(parameter) in self._last:
            self._done(parameter)

    def _done(self, parameter: nn.Parameter) -> None:
        """Note that the gradient of ``parameter`` is complete, and begin the sums of buckets that now are.

        Never the last one's: riders are not known yet.
        """
        if (bucket := self._bucket_of.get(id(parameter))) is not None:
            self._missing[bucket].discard(id(parameter))
        while self.begun < len(self._buckets) - 1 and not self._missing[self.begun]:
            self._begin_next()

    def _begin_next(self) -> None:
        """Begin the sum of the next bucket; that of the last has everything up to the end, riders included."""
        number = self.begun
        last = number == len(self._buckets) - 1
        numbers = self._flat[self._buckets[number].start : None if last else self._buckets[number].stop]
        if self._reduction is torch.float32:
            self._waits.append(self._copies.begin_sum(numbers))
            return
        gradients, riders = numbers.split([len(numbers) - last * len(self._riders), last * len(self._riders)])
        rounded = gradients.to(self._reduction)
        waits = self._copies.begin_sum(rounded), self._copies.begin_sum(riders)

        def wait() -> None:
            for one in waits:
                one()
            gradients.copy_(rounded)

        self._waits.append(wait)


@dataclass(slots=True)
class _Bucket:
    """``parameters`` whose gradients are at ``start`` to ``stop`` - 1 of the buffer."""

    parameters: list[nn.Parameter]
    start: int
    stop: int


def _cut(sized: Sequence[tuple[nn.Parameter, int]], least: int) -> list[_Bucket]:
    """Buckets of at least ``least`` numbers, the last one excepted. There is always one."""
    buckets = [_Bucket([], 0, 0)]
    for parameter, size in sized:
        end = buckets[-1].stop
        if end - buckets[-1].start >= least:
            buckets.append(_Bucket([], end, end))
        buckets[-1].parameters.append(parameter)
        buckets[-1].stop += size
    return buckets


def _copied(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, DTensor) and all(isinstance(p, Replicate) for p in parameter.placements)


def _shape(parameter: nn.Parameter) -> torch.Size:
    return parameter.to_local().shape if isinstance(parameter, DTensor) else parameter.shape


def _size(parameter: nn.Parameter) -> int:
    return _shape(parameter).numel()


def _attached(parameter: nn.Parameter, part: Tensor) -> Tensor:
    """``part`` as the gradient of ``parameter``."""
    if not isinstance(parameter, DTensor):
        return part
    placements: Sequence[Placement] = [Partial()] if _copied(parameter) else parameter.placements
    mesh, shape = parameter.device_mesh, parameter.shape
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=parameter.stride())
