"""``ckpt_stall_pct`` and ``ckpt_reshard``: what a checkpoint costs the training loop, and the disk's own time.

Files are written below TMPDIR.

*Stall*: preset ``small`` (135 M parameters) with AdamW takes steps of 256 tokens on one thread, and saves now and then.
The row is the time on the step's path, at one checkpoint a minute. *Lost* is by how much a save and the steps until the
files are there took longer than as many steps alone: that counts what the writing thread takes of processor and memory.

*Reshard*: two ranks save 1 GB (a model and its optimizer) split by rows, then load it split by columns: verified, and
read from the disk, not from its cache. The peer is as many bytes in as many processes: written and synced, then read.
Medians of pairs taken by turns.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from benchmarks.rows import Measured, Options
from llmos.models import ModelConfig, Transformer
from llmos.parallel.mesh import RankMesh
from llmos.parallel.model import Layout, SpreadModel
from llmos.parallel.stage import Numerics
from llmos.parallel.world import World
from llmos.spec import PRESETS, CheckpointPolicy, Optimizer
from llmos.train import checkpoint
from llmos.train.batch import Batch
from llmos.train.checkpoint import Checkpoint
from llmos.train.loss import cross_entropy_sum
from llmos.train.optimizer import Optimizer as Optimizers
from llmos.train.saver import Saver

RANKS, PAIRS = 2, 5
MATRIX = (4096, 4096)  # 64 MiB in fp32
MATRICES = 5  # of the model; the optimizer has twice as many: 1.007 GB in all
BLOCK_BYTES = 1 << 22
INTERVAL_S = 60.0
VOCABULARY = 49152  # of SmolLM-135M, whose shape preset `small` has
POLICY = CheckpointPolicy(keep=1)


def ckpt_stall_pct(options: Options) -> Measured:
    """Time on the step's path, in percent of a minute."""
    with tempfile.TemporaryDirectory(prefix="llmos-checkpoint-") as directory:
        return _stall(Path(directory), 2 if options.quick else PAIRS)


def ckpt_reshard(options: Options) -> Measured:
    """Saving and loading 1 GB on another mesh, relative to the disk's own time."""
    with tempfile.TemporaryDirectory(prefix="llmos-checkpoint-") as directory:
        return _reshard(Path(directory), 2 if options.quick else PAIRS)


def _stall(root: Path, pairs: int) -> Measured:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=VOCABULARY, **asdict(PRESETS["small"])))
    layout = Layout(rows=4, share=1, length=256)
    spread = SpreadModel(model, RankMesh(World()), layout, cross_entropy_sum, Numerics())
    optimizer = Optimizers(spread.parameters, Optimizer(), spread.mesh.line("dp"))
    batch = Batch.of(torch.randint(0, VOCABULARY, (1, 257)))
    saver = Saver(root / "stall", POLICY, World())
    found: list[tuple[float, float]] = []
    for number in range(pairs + 1):
        plain = [_step(spread, optimizer, batch) for _ in range(4)]
        began, steps = time.perf_counter(), 0
        stall_s = saver.save(Checkpoint(number, {}, optimizer.weights, optimizer.state(), {}))
        while saver.busy or not steps:
            _step(spread, optimizer, batch)
            steps += 1
        found.append((stall_s, time.perf_counter() - began - steps * statistics.median(plain)))
    saver.close()
    first, later = found[0], found[1:]
    stall_s, lost_s = (statistics.median(values) for values in zip(*later, strict=True))
    value = 100 * stall_s / INTERVAL_S
    why = f"path {stall_s:.3f} s (the first, which allocates, {first[0]:.3f} s), lost {lost_s:.2f} s, median of {pairs}"
    return Measured(value, why=why)


def _reshard(root: Path, count: int) -> Measured:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.list()
        ranks = [context.Process(target=_rank, args=(rank, root, count, results)) for rank in range(RANKS)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            raise RuntimeError(f"a rank failed: exit codes {[process.exitcode for process in ranks]}")
        pairs = list(results)
    save_s, load_s, write_s, read_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median((save + load) / (write + read) for save, load, write, read in pairs)
    raw = f"raw write {write_s:.2f} s, read {read_s:.2f} s"
    why = f"save {save_s:.2f} s, load {load_s:.2f} s; {raw}; {RANKS} processes, median of {count}"
    return Measured(save_s + load_s, write_s + read_s, ratio, why)


def _step(model: SpreadModel, optimizer: Optimizers, batch: Batch) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    for parameter in model.parameters.values():
        parameter.grad = None
    model.set_scale(1 / batch.tokens_BT.numel())
    model.passes.accumulate(batch.tokens_BT, batch.targets_BT)
    gradients = [parameter.grad for parameter in model.parameters.values()]
    optimizer.step(1e-4, [gradient for gradient in gradients if gradient is not None])
    return time.perf_counter() - began


def _rank(rank: int, root: Path, count: int, results: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", store=dist.FileStore(str(root / "store"), RANKS), rank=rank, world_size=RANKS)
    world, mesh = World.current(), init_device_mesh("cpu", (RANKS,))
    tensors = {f"matrix{i}": torch.randn(MATRIX) for i in range(MATRICES)}
    model = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in tensors.items()}
    state = {f"{name}/{key}": tensor * 2 for name, tensor in model.items() for key in ("exp_avg", "exp_avg_sq")}
    snapshot = Checkpoint(1, {}, model, state, {})
    empty = {name: distribute_tensor(torch.zeros(MATRIX), mesh, [Shard(1)]) for name in tensors}
    size_bytes = sum(part.data.nbytes for part in checkpoint.share(snapshot, world))
    content = memoryview(np.random.default_rng(0).bytes(size_bytes))
    for number in range(count + 1):
        shutil.rmtree(root / "saved", ignore_errors=True) if world.first else None
        raw = _timed(lambda: _write_raw(root / f"raw{rank}", content)), _timed(lambda: _read_raw(root / f"raw{rank}"))
        save_s = _timed(lambda: checkpoint.save(root / "saved", snapshot, POLICY, world))
        load_s = _timed(lambda: _load(root / "saved", empty, world), root / "saved")
        if world.first and number:  # the first pair warms up
            results.append((save_s, load_s, *raw))
    for name, tensor in tensors.items():
        assert torch.equal(empty[name].full_tensor(), tensor), name
    dist.destroy_process_group()


def _load(directory: Path, model: dict[str, Any], world: World) -> None:
    path = checkpoint.find_latest(directory, {}, world)
    assert path is not None
    checkpoint.load(path, model, world)


def _timed(do: Any, evict: Path | None = None) -> float:
    """Seconds until every rank has done ``do``; before, what lies under ``evict`` is dropped from the disk's cache."""
    for path in evict.rglob("*") if evict else ():
        if path.is_file():
            _evict(path)
    dist.barrier()
    began = time.perf_counter()
    do()
    dist.barrier()
    return time.perf_counter() - began


def _write_raw(path: Path, content: memoryview) -> None:
    with path.open("wb") as file:
        for begin in range(0, len(content), BLOCK_BYTES):
            file.write(content[begin : begin + BLOCK_BYTES])
        file.flush()
        os.fsync(file.fileno())


def _read_raw(path: Path) -> None:
    _evict(path)
    buffer = bytearray(BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            continue


def _evict(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
