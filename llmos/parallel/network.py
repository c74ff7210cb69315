"""How fast ranks sum: a sweep of sizes against the cost model, t = latency + 2(n - 1)/n · bytes / bandwidth.

That is what a ring costs each of its n ranks (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters
of workstations", 2009): (n - 1)/n of the bytes are sent to add them up, and as many to hand out the sums.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

SIZES = tuple(2**exponent for exponent in range(10, 28, 3))
"""Bytes of the sums, 1 KiB to 32 MiB: from where latency is all to where bandwidth is."""
LINK_BYTES = 2**22
REPEATS, WARM_UP = 9, 2
NCCL = "nccl"
SLOW = 0.5
"""A link that reaches less than this share of the median link is called slow."""


@dataclass(frozen=True, slots=True)
class Sum:
    """All-reduce of ``size_bytes`` took ``time_s``: the median over repetitions of the slowest rank's time."""

    size_bytes: int
    time_s: float


@dataclass(frozen=True, slots=True)
class Link:
    """Between ranks ``a`` and ``b``: bytes per second, there and back."""

    a: int
    b: int
    bandwidth: float


@dataclass(frozen=True, slots=True)
class Network:
    """What was measured on ``ranks`` ranks over ``backend``, and the cost model that fits it best."""

    ranks: int
    backend: str
    sums: tuple[Sum, ...]
    links: tuple[Link, ...]
    latency_s: float
    bandwidth: float

    @classmethod
    def of(cls, ranks: int, backend: str, sums: Sequence[Sum], links: Sequence[Link]) -> Network:
        return cls(ranks, backend, tuple(sums), tuple(links), *fit(ranks, sums))

    def predicted_s(self, size_bytes: int) -> float:
        """Seconds that the cost model gives a sum of ``size_bytes``."""
        return self.latency_s + moved(self.ranks, size_bytes) / self.bandwidth

    @property
    def slow(self) -> tuple[Link, ...]:
        """The links that are much slower than most."""
        usual = statistics.median(link.bandwidth for link in self.links) if self.links else 0.0
        return tuple(link for link in self.links if link.bandwidth < SLOW * usual)


def moved(ranks: int, size_bytes: int) -> float:
    """Bytes that each of ``ranks`` ranks sends during a sum of ``size_bytes``."""
    return 2 * (ranks - 1) / ranks * size_bytes


def fit(ranks: int, sums: Sequence[Sum]) -> tuple[float, float]:
    """Latency (s) and bandwidth (bytes/s) with the least squares of relative errors: small sums count like large ones.

    A latency that would be negative is 0.
    """
    bytes_S = np.array([moved(ranks, one.size_bytes) for one in sums])
    times_S = np.array([one.time_s for one in sums])
    terms_S2 = np.stack([np.ones_like(times_S), bytes_S], axis=1) / times_S[:, None]
    (latency_s, per_byte), *_ = np.linalg.lstsq(terms_S2, np.ones_like(times_S), rcond=None)
    if latency_s < 0:
        latency_s, per_byte = 0.0, 1 / float(np.mean(bytes_S / times_S))
    return float(latency_s), 1 / max(float(per_byte), 1e-15)


def measure_here(ranks: int) -> Network:
    """Measure on ``ranks`` processes of this machine: over NCCL where each has a GPU, else gloo on the loopback."""
    with tempfile.TemporaryDirectory(prefix="llmos-network-") as directory:
        multiprocessing.spawn(_rank, (ranks, directory), nprocs=ranks)
        return of_numbers(json.loads(Path(directory, "found.json").read_text()))


def measure(device: torch.device) -> Network:
    """Measure in the process group that this process has joined; every rank calls it and gets the same."""
    ranks = dist.get_world_size()
    numbers = [torch.zeros(size // 4, device=device) for size in SIZES]
    sums = [Sum(size, _slowest(partial(dist.all_reduce, x), device)) for size, x in zip(SIZES, numbers, strict=True)]
    links = [Link(a, b, _link(a, b, device)) for a, b in itertools.combinations(range(ranks), 2)]
    return Network.of(ranks, dist.get_backend(), sums, links)


def numbers(network: Network) -> dict[str, float]:
    """What was measured, by name: what a job reports as its metrics, and :func:`of_numbers` reads."""
    found = {"ranks": float(network.ranks), NCCL: float(network.backend == NCCL)}
    found |= {f"sum_{one.size_bytes}": one.time_s for one in network.sums}
    return found | {f"link_{link.a}_{link.b}": link.bandwidth for link in network.links}


def of_numbers(found: Mapping[str, float]) -> Network:
    """The network whose :func:`numbers` are among ``found``."""
    sums, links = [], []
    for name, value in found.items():
        match name.split("_"):
            case ["sum", size_bytes]:
                sums.append(Sum(int(size_bytes), value))
            case ["link", a, b]:
                links.append(Link(int(a), int(b), value))
    return Network.of(int(found["ranks"]), NCCL if found[NCCL] else "gloo", sums, links)


def _rank(rank: int, ranks: int, directory: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    backend = NCCL if torch.cuda.device_count() >= ranks else "gloo"
    device = torch.device("cuda", rank) if backend == NCCL else torch.device("cpu")
    if backend == NCCL:
        torch.cuda.set_device(device)
    dist.init_process_group(backend, store=dist.FileStore(f"{directory}/store", ranks), rank=rank, world_size=ranks)
    found = measure(device)
    if rank == 0:
        Path(directory, "found.json").write_text(json.dumps(numbers(found)))
    dist.destroy_process_group()


def _slowest(run: Callable[[], object], device: torch.device) -> float:
    """The median time of ``run``, each time as the slowest rank saw it; equal on all ranks."""
    times_R = torch.zeros(REPEATS, dtype=torch.float64, device=device)
    for repeat in range(-WARM_UP, REPEATS):
        dist.barrier()
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if repeat >= 0:
            times_R[repeat] = time.perf_counter() - began
    dist.all_reduce(times_R, dist.ReduceOp.MAX)
    return float(times_R.median())


def _link(a: int, b: int, device: torch.device) -> float:
    """Bytes per second between two ranks; the others wait."""
    rank, numbers = dist.get_rank(), torch.zeros(LINK_BYTES // 4, device=device)

    def there_and_back() -> None:
        if rank == a:
            dist.send(numbers, b)
            dist.recv(numbers, b)
        elif rank == b:
            dist.recv(numbers, a)
            dist.send(numbers, a)

    return 2 * LINK_BYTES / _slowest(there_and_back, device)
