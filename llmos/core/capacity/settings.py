"""How a model is trained: the mesh and everything else that decides about memory and time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

AXES = ("dp", "fsdp", "tp", "pp", "cp")


@dataclass(frozen=True, slots=True, order=True)
class Mesh:
    """How many ways each kind of parallelism splits the work. In the order of ranks, tp changes fastest, then cp, fsdp,
    dp, pp: what talks most sits on one node."""

    dp: int = 1
    fsdp: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1

    @property
    def size(self) -> int:
        """How many ranks the mesh has."""
        return self.dp * self.fsdp * self.tp * self.pp * self.cp

    @property
    def data(self) -> int:
        """Ranks that see different sequences."""
        return self.dp * self.fsdp

    def stride(self, axis: str) -> int:
        """How far apart, in the order of ranks, neighbours along ``axis`` are."""
        inner = {"tp": 1, "cp": self.tp, "fsdp": self.tp * self.cp, "dp": self.tp * self.cp * self.fsdp}
        return inner.get(axis, self.size // self.pp)

    def __str__(self) -> str:
        shown = [f"{axis} {ways}" for axis in AXES if (ways := getattr(self, axis)) > 1]
        return " × ".join(shown) or "1 rank"


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes per weight and per number of a token, and the type of the products.

    ``master``: of the fp32 copy that the optimizer keeps beside lower weights. ``stream``: of the residual stream.
    ``cast``: of the copy of the weights that autocast makes for a forward and backward pass, 0 without autocast.
    """

    products: str
    weight: int
    gradient: int
    master: int
    number: int
    stream: int
    cast: int


PRECISIONS: Mapping[str, Precision] = MappingProxyType(
    {
        "fp32": Precision("fp32", 4, 4, 0, 4, 4, 0),
        "bf16": Precision("bf16", 4, 4, 0, 2, 4, 2),  # autocast; llmos keeps the stream in fp32 (models/transformer.py)
        "fp16": Precision("fp16", 4, 4, 0, 2, 4, 2),
        "bf16_weights": Precision("bf16", 2, 4, 4, 2, 4, 0),
        "bf16_all": Precision("bf16", 2, 4, 4, 2, 2, 0),  # the stream too, as in torchtitan
        "fp8": Precision("fp8", 2, 4, 4, 2, 2, 0),  # products in fp8, all else as bf16_all
    }
)

OPTIMIZERS: Mapping[str, int] = MappingProxyType({"adamw": 2, "muon": 1, "sgd": 1})
"""fp32 numbers that an optimizer remembers of a weight: two moments, one momentum, one momentum."""

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero_bubble")
BLOCK_ATTENTION_TOKENS = range(65, 2049)
"""The lengths of sequences of block attention (models/block_attention.py)."""
CHECKPOINTING = ("none", "selective", "full")
"""What llmos can do. torchtitan keeps the products of every second matrix and attention's output (``alternate``)."""


@dataclass(frozen=True, slots=True)
class Recomputed:
    """How much of a layer's forward pass happens again: of its products, of attention, of elementwise operations; and
    the collectives of tensor parallelism in both passes."""

    products: float
    attention: float
    elementwise: float
    collectives: int


RECOMPUTED: Mapping[str, Recomputed] = MappingProxyType(
    {
        "none": Recomputed(0, 0, 0, 10),
        "selective": Recomputed(0, 1, 1, 14),
        "alternate": Recomputed(0.5, 0, 1, 12),
        "full": Recomputed(1, 1, 1, 14),
    }
)


@dataclass(frozen=True, slots=True)
class Training:
    """Everything but the model, the mesh and the machines.

    ``batch``: sequences of a step over all ranks; ``micro_batch``: of a rank's forward pass. ``stages``: pipeline
    stages a rank holds (interleaved, zero_bubble). ``checkpointing``: nothing is recomputed; all but the products of
    matrices is (selective); a layer's whole forward pass is (full). ``logit_tokens``: whose logits exist at one time.
    ``cpu``: attention keeps the probabilities of short sequences, and glibc allocates. ``async_tp``: tensor-parallel
    communication is hidden behind its products where it can be. ``trained``: the share of the weights that is, less
    than 1 for adapters (LoRA).
    """

    batch: int
    micro_batch: int
    sequence: int
    precision: str = "bf16"
    optimizer: str = "adamw"
    checkpointing: str = "none"
    schedule: str = "1f1b"
    stages: int = 1
    compiled: bool = False
    async_tp: bool = False
    trained: float = 1.0
    logit_tokens: int = 1024
    cpu: bool = False

    @property
    def numbers(self) -> Precision:
        """Bytes and types of :attr:`precision`."""
        return PRECISIONS[self.precision]

    @property
    def tokens(self) -> int:
        """Tokens of a step, over all ranks."""
        return self.batch * self.sequence

    def micro_batches(self, mesh: Mesh) -> int:
        """Forward passes of a rank in a step; the last may be smaller."""
        return max(1, -(-self.batch // (mesh.data * self.micro_batch)))

    def with_micro_batch(self, size: int) -> Training:
        """The same with micro-batches of ``size`` sequences: the step, and so the result, stays what it is."""
        return dataclasses.replace(self, micro_batch=size)
