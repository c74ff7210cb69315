"""What this machine reaches: matrix products, memory, and sums between two ranks. For estimates that fit it."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

RUN_S = 1.0
"""How long each thing is repeated; the median counts."""
TOKENS, WIDTH, DEPTH = {"cpu": 1024, "cuda": 16384}, {"cpu": 576, "cuda": 4096}, {"cpu": 1536, "cuda": 14336}
"""Of the products: a micro-batch through a layer of preset `small` on a core, of an 8B on a GPU."""
STREAM_BYTES = {"cpu": 2**26, "cuda": 2**30}
SUM_BYTES = 2**25


def calibrate(threads: int = 1) -> dict[str, float]:
    """``{dtype}_flops`` (operations/s), ``memory_bandwidth``, ``all_reduce_bandwidth`` (bytes/s), ``memory_bytes``.

    On the GPU if there is one, else with ``threads`` threads of the CPU.
    """
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {f"{name}_flops": _products(dtype, device) for name, dtype in _types(device).items()}
    total = torch.cuda.get_device_properties(0).total_memory if device.type == "cuda" else psutil.virtual_memory().total
    return found | {
        "memory_bandwidth": _stream(device),
        "all_reduce_bandwidth": _all_reduce(device),
        "memory_bytes": float(total),
    }


def kind_name() -> str:
    """What this machine's accelerator is called: `CPU`, or the second word of the GPU's name (NVIDIA `H100` …)."""
    return torch.cuda.get_device_name(0).split()[1] if torch.cuda.is_available() else "CPU"


def _types(device: torch.device) -> dict[str, torch.dtype]:
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return types | {"fp16": torch.float16} if device.type == "cuda" else types


def _products(dtype: torch.dtype, device: torch.device) -> float:
    n, d, f = TOKENS[device.type], WIDTH[device.type], DEPTH[device.type]
    x_ND = torch.randn(n, d, device=device).to(dtype)
    weight_DF = torch.randn(d, f, device=device).to(dtype)
    return 2 * n * d * f / _seconds(lambda: x_ND @ weight_DF, device)


def _stream(device: torch.device) -> float:
    """Bytes per second read and written by a copy."""
    source = torch.ones(STREAM_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * len(source) / _seconds(lambda: target.copy_(source), device)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    times: list[float] = []
    while sum(times) < RUN_S or len(times) < 5:
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _all_reduce(device: torch.device) -> float:
    """Bytes that one of two ranks sends per second during a sum: 2(n - 1)/n of its bytes, over its time.

    Ranks are two GPUs where there are two, else two processes that talk over the loopback interface.
    """
    backend = "nccl" if device.type == "cuda" and torch.cuda.device_count() > 1 else "gloo"
    with tempfile.TemporaryDirectory(prefix="llmos-calibrate-") as directory:
        multiprocessing.spawn(_rank, (directory, backend), nprocs=2)
        return float((Path(directory) / "bandwidth").read_text())


def _rank(rank: int, directory: str, backend: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(backend, store=dist.FileStore(f"{directory}/store", 2), rank=rank, world_size=2)
    numbers = torch.ones(SUM_BYTES // 4, device=device)
    times = []
    for _ in range(8):  # as many on both ranks
        dist.barrier()
        times.append(_once(numbers, device))
    if rank == 0:
        Path(directory, "bandwidth").write_text(str(2 * (2 - 1) / 2 * SUM_BYTES / statistics.median(times[2:])))
    dist.destroy_process_group()


def _once(numbers: torch.Tensor, device: torch.device) -> float:
    began = time.perf_counter()
    dist.all_reduce(numbers)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
