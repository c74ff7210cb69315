"""What one accelerator, or one CPU core, of each kind can do, with the source of every constant.

``peak`` and the memory's size and bandwidth are the maker's data sheets (dense, not sparse). What a run reaches of a
peak is one constant per kind, ``sustained``; it, and the three that hold for every kind in :mod:`.time`, were fitted to
published runs. docs/capacity.md has the rows, the fit, and the rows that were kept out of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llmos.errors import UsageError

GB, GIB = 10**9, 2**30


@dataclass(frozen=True, slots=True)
class Hardware:
    """One rank's accelerator.

    ``peak``: operations per second by type of number. ``sustained``: the share of it that matrix products reach.
    ``intra_bandwidth`` and ``inter_bandwidth``: bytes per second that one rank sends while it receives as many, to
    ranks of its own node and of others. ``overlap``: whether it communicates while it computes. ``price``: dollars per
    hour, None when no public list was at hand.
    """

    kind: str
    peak: Mapping[str, float]
    sustained: float
    memory_bytes: float
    memory_bandwidth: float
    intra_bandwidth: float
    inter_bandwidth: float
    per_node: int
    price: float | None
    overlap: bool = True

    def sustained_flops(self, dtype: str) -> float:
        """Operations per second that products of ``dtype`` reach. Raises UsageError for a type the kind lacks."""
        if dtype not in self.peak:
            known = ", ".join(self.peak)
            raise UsageError(f"{self.kind} has no products in {dtype}: expected one of {known}", param="precision")
        return self.peak[dtype] * self.sustained

    def bandwidth(self, ranks: int, stride: int) -> float:
        """Bytes per second of a collective over ``ranks`` ranks that are ``stride`` apart in the order of ranks.

        Within a node the links of the node carry it. Across nodes every rank brings its own network card: those of one
        group that share a node add theirs up, until the node's links are the limit (the rings of NCCL).
        """
        if ranks * stride <= self.per_node:
            return self.intra_bandwidth
        return min(self.intra_bandwidth, self.inter_bandwidth * max(1, self.per_node // stride))


_NVLINK_4, _NVLINK_3 = 450 * GB, 300 * GB
"""A way: NVLink 4 and 3 are sold as 900 and 600 GB/s both ways."""
_LINK_SHARE = 0.8
"""Of a link's rate, what collectives of many megabytes reach: 360 GB/s of bus bandwidth on eight H100 (nccl-tests)."""

_H100 = Hardware(
    kind="H100",  # SXM5, 700 W: NVIDIA H100 data sheet (DS-10313)
    peak=MappingProxyType({"fp32": 67e12, "bf16": 989e12, "fp16": 989e12, "fp8": 1979e12}),
    sustained=0.70,
    memory_bytes=80 * GB,
    memory_bandwidth=3350 * GB,
    intra_bandwidth=_NVLINK_4 * _LINK_SHARE,
    inter_bandwidth=50 * GB * _LINK_SHARE,  # DGX H100: one 400 Gb/s network card for each GPU
    per_node=8,
    price=4.69,  # RunPod, secure cloud, as in SkyPilot's catalog v6; so are the others unless they say otherwise
)

KINDS: Mapping[str, Hardware] = MappingProxyType(
    {
        "H100": _H100,
        # The H100 of Meta's Grand Teton, as torchtitan's benchmarks describe it: HBM2e and a limit of 500 W
        "H100-500W": dataclasses.replace(
            _H100, kind="H100-500W", sustained=0.49, memory_bytes=96 * GB, memory_bandwidth=2400 * GB
        ),
        # NVIDIA H200 data sheet: the processor of the H100 with HBM3e
        "H200": dataclasses.replace(
            _H100, kind="H200", sustained=0.57, memory_bytes=141 * GB, memory_bandwidth=4800 * GB, price=None
        ),
        "A100": Hardware(
            kind="A100",  # SXM4, 80 GB: NVIDIA A100 data sheet (DS-10031)
            peak=MappingProxyType({"fp32": 19.5e12, "bf16": 312e12, "fp16": 312e12}),
            sustained=0.70,  # no run to fit: that of the H100
            memory_bytes=80 * GB,
            memory_bandwidth=2039 * GB,
            intra_bandwidth=_NVLINK_3 * _LINK_SHARE,
            inter_bandwidth=25 * GB * _LINK_SHARE,  # DGX A100: eight 200 Gb/s network cards
            per_node=8,
            price=2.29,
        ),
        "L4": Hardware(
            kind="L4",  # NVIDIA L4 data sheet (dense: half of what it says with sparsity)
            peak=MappingProxyType({"fp32": 30.3e12, "bf16": 121e12, "fp16": 121e12, "fp8": 242e12}),
            sustained=0.5,  # 72 W: no run to fit; that of the H100 that is held to 500 W
            memory_bytes=24 * GB,
            memory_bandwidth=300 * GB,
            intra_bandwidth=32 * GB * _LINK_SHARE,  # PCIe 4.0 x16, no NVLink
            inter_bandwidth=3.1 * GB * _LINK_SHARE,  # a 25 Gb/s card
            per_node=8,
            price=0.44,
        ),
        "CPU": Hardware(
            kind="CPU",  # one core: AVX-512 at 2.5 GHz, two units, and bf16 products at twice the rate (AVX512-BF16)
            peak=MappingProxyType({"fp32": 160e9, "bf16": 320e9}),
            sustained=0.6,
            memory_bytes=8 * GIB,
            memory_bandwidth=12 * GB,
            intra_bandwidth=2 * GB,  # gloo over the loopback interface
            inter_bandwidth=1.25 * GB,  # 10 Gb/s
            per_node=64,
            price=0.05,  # Lambda, cpu_4x_general, in the same catalog
            overlap=False,
        ),
    }
)


def hardware(kind: str) -> Hardware:
    """The kind called ``kind``, in any case. Raises UsageError with the known ones."""
    if found := {name.lower(): known for name, known in KINDS.items()}.get(kind.lower()):
        return found
    raise UsageError(f"{kind[:40]!r} is not a kind of accelerator: expected one of {', '.join(KINDS)}", param="gpu")


def calibrated(kind: Hardware, measured: Mapping[str, float]) -> Hardware:
    """``kind`` with what ``llmos estimate --calibrate`` measured on a machine in the place of its constants.

    Products count as measured, so ``sustained`` becomes 1 and the peaks what was reached.
    """
    flops = {dtype: measured[f"{dtype}_flops"] for dtype in kind.peak if f"{dtype}_flops" in measured}
    return dataclasses.replace(
        kind,
        peak=MappingProxyType(flops) if flops else kind.peak,
        sustained=1.0 if flops else kind.sustained,
        memory_bytes=measured.get("memory_bytes", kind.memory_bytes),
        memory_bandwidth=measured.get("memory_bandwidth", kind.memory_bandwidth),
        intra_bandwidth=measured.get("all_reduce_bandwidth", kind.intra_bandwidth),
    )
