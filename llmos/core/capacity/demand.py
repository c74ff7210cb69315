"""How many machines: the ways on a given number of them, and the smallest number that holds the model or is done in
time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from llmos.core.capacity.hardware import GB, Hardware
from llmos.core.capacity.memory import training_memory
from llmos.core.capacity.meshes import USABLE, Candidate, candidates, obstacle, refusal, would_fit
from llmos.core.capacity.settings import Mesh, Training
from llmos.core.capacity.shape import ModelShape
from llmos.errors import UsageError

STEP_TOKENS = 4 * 2**20
"""Tokens of a step when nothing says how many: what Llama 3 began with (arXiv 2407.21783, section 3.4.1)."""
LARGEST_CLUSTER = 2**15
EIGHTHS = (5, 6, 7)
"""Of a power of two of ranks: what is tried between one that is too small and the next, which is large enough."""


@dataclass(frozen=True, slots=True)
class Demand:
    """A model, the tokens to train it on, and what is left open: ``batch`` None is 4Mi tokens, rounded up to divide;
    ``micro_batch`` None is any; ``checkpointing`` lists what may be chosen; ``mesh`` None is any."""

    shape: ModelShape
    tokens: float
    training: Training
    kind: Hardware
    batch: int | None = None
    micro_batch: int | None = None
    checkpointing: tuple[str, ...] = ("none",)
    mesh: Mesh | None = None

    def on(self, ranks: int) -> list[Candidate]:
        """Every way on ``ranks`` ranks, fastest first; empty when nothing fits."""
        return candidates(
            self.shape,
            self._training(ranks),
            ranks,
            self.kind,
            micro_batches=self._sizes if self.micro_batch else None,
            checkpointing=self.checkpointing,
            only=self.mesh,
        )

    def refusal(self, ranks: int) -> UsageError:
        """Says why nothing fits on ``ranks`` ranks, and what would, for when :meth:`on` is empty."""
        training = dataclasses.replace(self._training(ranks), checkpointing=self.checkpointing[-1])
        if self.mesh:
            return self._mesh_refusal(self.mesh, training)
        if self.micro_batch and training.batch % self.micro_batch:
            hint = f"Take one that divides {training.batch}, or say --batch."
            what = f"micro-batches of {self.micro_batch} sequences do not divide a batch of {training.batch}"
            return UsageError(what, hint=hint, param="--micro-batch")
        return refusal(self.shape, training.with_micro_batch(self.micro_batch or 1), ranks, self.kind)

    def fewest(self) -> list[Candidate]:
        """The ways on the smallest power of two of ranks that holds the model. Raises UsageError when none does."""
        for ranks in _powers(1, LARGEST_CLUSTER):
            if found := self.on(ranks):
                return found
        batch, precision = self._training(1).batch, self.training.precision
        raise UsageError(
            f"no number of {self.kind.kind} up to {LARGEST_CLUSTER} holds {self.shape.num_parameters / 1e9:,.3g}B "
            f"parameters in {precision} with batches of {batch} × {self.training.sequence} tokens",
            hint="Take shorter sequences, another --precision, a larger --batch, or a kind with more memory.",
            param="--gpus",
        )

    def within(self, seconds: float) -> list[Candidate]:
        """The ways on the fewest ranks that are done in ``seconds``: a power of two, or 5, 6 or 7 eighths of one where
        those are whole nodes. Raises UsageError."""
        fastest_s = math.inf
        for ranks in _powers(1, LARGEST_CLUSTER):
            found = self.on(ranks)
            fastest_s = min(fastest_s, self._seconds(found))
            if fastest_s <= seconds:
                between = (ways for ranks in self._between(ranks) if self._seconds(ways := self.on(ranks)) <= seconds)
                return next(between, found)
        found_s = f"done in time: the fastest takes {fastest_s / 86400:.3g} days" if fastest_s < math.inf else "enough"
        raise UsageError(
            f"no number of {self.kind.kind} up to {LARGEST_CLUSTER} is {found_s}",
            hint="Allow more time, fewer tokens or a larger batch, or take a faster kind.",
            param="--deadline",
        )

    def _seconds(self, found: list[Candidate]) -> float:
        return min((self.tokens / way.time.tokens_per_s for way in found[:1]), default=math.inf)

    def _between(self, ranks: int) -> Iterator[int]:
        """Numbers of ranks between ``ranks`` / 2 and ``ranks`` that fill their nodes, smallest first."""
        for fewer in (ranks * eighths // 8 for eighths in EIGHTHS if ranks >= 8):
            if fewer < self.kind.per_node or fewer % self.kind.per_node == 0:
                yield fewer

    def _mesh_refusal(self, mesh: Mesh, training: Training) -> UsageError:
        training = training.with_micro_batch(self.micro_batch or 1)
        if why := obstacle(self.shape, training, mesh, self.kind):
            hint = "Without --mesh, all that are possible are shown."
            return UsageError(f"mesh {mesh}: {why}", hint=hint, param="mesh")
        if training.batch < training.micro_batch * mesh.data * mesh.pp or training.batch % training.micro_batch:
            share = f"the {training.batch // mesh.data} sequences of a rank"
            what = f"mesh {mesh}: micro-batches of {training.micro_batch} do not divide {share} into {mesh.pp} or more"
            return UsageError(what, hint="Take smaller ones, or a larger --batch.", param="--micro-batch")
        needed = training_memory(self.shape, training, mesh).total / GB
        has = f"{self.kind.memory_bytes * USABLE / GB:.1f} GB of memory to use"
        other = would_fit(self.shape, training, mesh.size, self.kind, lambda mesh: True)
        return UsageError(
            f"mesh {mesh} does not fit on {mesh.size} × {self.kind.kind} with {has}: it takes {needed:.1f} GB on each",
            hint=f"What would fit: {other or 'nothing that was tried'}.",
            param="mesh",
        )

    def _sizes(self, mesh: Mesh) -> list[int]:
        size, share = self.micro_batch or 1, self._training(mesh.size).batch // mesh.data
        return [size] if share % size == 0 else []

    def _training(self, ranks: int) -> Training:
        """A batch that is not named is rounded up, by a quarter at most, so that data-parallel ranks can share it: all
        of a named mesh, else all ranks, or a half, a quarter … of them where there are too many."""
        if self.batch:
            return dataclasses.replace(self.training, batch=self.batch)
        least, share = math.ceil(STEP_TOKENS / self.training.sequence), self.mesh.data if self.mesh else ranks
        while not self.mesh and share % 2 == 0 and share > least // 4:
            share //= 2
        return dataclasses.replace(self.training, batch=math.ceil(least / share) * share)


def _powers(first: int, last: int) -> Iterator[int]:
    while first <= last:
        yield first
        first *= 2
