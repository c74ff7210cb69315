"""How many machines: the ways on a given number of them, and the smallest number that is done in time."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from llmos.core.capacity.hardware import Hardware
from llmos.core.capacity.meshes import Candidate, candidates, refusal
from llmos.core.capacity.settings import Mesh, Training
from llmos.core.capacity.shape import ModelShape
from llmos.errors import UsageError

STEP_TOKENS = 4 * 2**20
"""Tokens of a step when nothing says how many: what Llama 3 began with (arXiv 2407.21783, section 3.4.1)."""
LARGEST_CLUSTER = 2**15


@dataclass(frozen=True, slots=True)
class Demand:
    """A model, the tokens to train it on, and what is left open: ``batch`` None is 4Mi tokens, rounded up to divide;
    ``micro_batch`` None is any; ``checkpointing`` lists what may be chosen."""

    shape: ModelShape
    tokens: float
    training: Training
    kind: Hardware
    batch: int | None = None
    micro_batch: int | None = None
    checkpointing: tuple[str, ...] = ("none",)

    def on(self, ranks: int) -> list[Candidate]:
        """Every way on ``ranks`` ranks, fastest first; empty when nothing fits."""
        return candidates(
            self.shape,
            self._training(ranks),
            ranks,
            self.kind,
            micro_batches=self._sizes if self.micro_batch else None,
            checkpointing=self.checkpointing,
        )

    def refusal(self, ranks: int) -> UsageError:
        """Says what would fit, for when :meth:`on` is empty."""
        training = dataclasses.replace(self._training(ranks), checkpointing=self.checkpointing[-1])
        return refusal(self.shape, training, ranks, self.kind)

    def within(self, seconds: float) -> list[Candidate]:
        """The ways on the smallest power of two of ranks that is done in ``seconds``. Raises UsageError."""
        fastest_s = math.inf
        for ranks in (2**n for n in range(LARGEST_CLUSTER.bit_length())):
            found = self.on(ranks)
            fastest_s = min([fastest_s, *(self.tokens / way.time.tokens_per_s for way in found[:1])])
            if fastest_s <= seconds:
                return found
        found_s = f"done in time: the fastest takes {fastest_s / 86400:.3g} days" if fastest_s < math.inf else "enough"
        raise UsageError(
            f"no number of {self.kind.kind} up to {LARGEST_CLUSTER} is {found_s}",
            hint="Allow more time, fewer tokens or a larger batch, or take a faster kind.",
            param="--deadline",
        )

    def _sizes(self, mesh: Mesh) -> list[int]:
        size, share = self.micro_batch or 1, self._training(mesh.size).batch // mesh.data
        return [size] if share % size == 0 else []

    def _training(self, ranks: int) -> Training:
        odd = ranks // (ranks & -ranks)
        batch = self.batch or math.ceil(STEP_TOKENS / self.training.sequence / odd) * odd
        return dataclasses.replace(self.training, batch=batch)
