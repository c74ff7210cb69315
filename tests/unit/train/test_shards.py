"""Checkpoints of several ranks, as real processes on gloo: what one mesh saved, any other loads, bit for bit."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from llmos.errors import CheckpointError
from llmos.parallel.world import World
from llmos.spec import CheckpointPolicy
from llmos.train import checkpoint, generators, shards
from llmos.train.checkpoint import Checkpoint
from llmos.train.saver import Saver

RANKS = 4
RECIPE = {"seed": 0}
POLICY = CheckpointPolicy(keep=2)
SHAPES = {"embed": (12, 8), "up": (16, 8), "down": (8, 16), "norm": (8,), "few": (3, 5)}
"""``few`` has fewer rows than there are ranks: one of them holds nothing of it."""
COLUMNS = {"down"}  # what tensor parallelism splits by columns; it splits the rest by rows

Split = Callable[[str, Tensor], Tensor]


def _full() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def _full_optimizer() -> dict[str, Tensor]:
    state = {f"{name}/exp_avg": (tensor * 3).bfloat16() for name, tensor in _full().items()}
    return state | {f"{name}/step": torch.tensor(7.0) for name in SHAPES}


def _whole(name: str, tensor: Tensor) -> Tensor:
    return tensor.clone()


def _fsdp(mesh: DeviceMesh) -> Split:
    return lambda name, tensor: distribute_tensor(tensor, mesh, [Shard(0)])


def _fsdp_tp(mesh: DeviceMesh) -> Split:
    def split(name: str, tensor: Tensor) -> Tensor:
        by_tp = Shard(1) if name in COLUMNS else Replicate() if tensor.dim() < 2 or name == "few" else Shard(0)
        return distribute_tensor(tensor, mesh, [Shard(0) if by_tp != Shard(0) else Shard(1), by_tp])

    return split


def _hsdp(mesh: DeviceMesh) -> Split:
    return lambda name, tensor: distribute_tensor(tensor, mesh, [Replicate(), Shard(0)])


def _snapshot(step: int, split: Split, world: World, **more: Any) -> Checkpoint:
    model = {name: split(name, tensor) for name, tensor in _full().items()}
    optimizer = {
        name: split(name.partition("/")[0], tensor) if tensor.dim() else tensor
        for name, tensor in _full_optimizer().items()
    }
    return Checkpoint(step, RECIPE, model, optimizer, {"ranks": world.size, **more})


def _load(directory: Path, split: Split, world: World) -> Checkpoint:
    path = checkpoint.find_latest(directory, RECIPE, world)
    assert path is not None
    empty = {name: split(name, torch.zeros_like(tensor)) for name, tensor in _full().items()}
    return checkpoint.load(path, empty, world)


def _is_all(found: Checkpoint) -> None:
    """Every tensor is what was saved, split as the model is."""
    for name, expected in (_full() | _full_optimizer()).items():
        tensor = found.model[name] if name in SHAPES else found.optimizer[name]
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        assert whole.dtype == expected.dtype and torch.equal(whole, expected), name
    for name, tensor in found.model.items():
        state = found.optimizer[f"{name}/exp_avg"]
        assert isinstance(state, DTensor) is isinstance(tensor, DTensor)
        if isinstance(tensor, DTensor) and isinstance(state, DTensor):
            assert state.placements == tensor.placements
    assert found.optimizer.keys() == _full_optimizer().keys()


def _any_mesh_to_any_other(directory: Path, world: World) -> None:
    """fsdp4 → fsdp2 × tp2 → one rank → dp2 × fsdp2 → fsdp4."""
    line, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    checkpoint.save(directory, _snapshot(1, _fsdp(line), world), POLICY, world)
    assert len(list((directory / "step-00000001").glob("model-*"))) == 4
    found = _load(directory, _fsdp_tp(square), world)
    _is_all(found)
    checkpoint.save(directory, Checkpoint(2, RECIPE, found.model, found.optimizer, found.state), POLICY, world)
    alone = World()
    found = _load(directory, _whole, alone)
    _is_all(found)
    dist.barrier()
    if world.first:
        checkpoint.save(directory, Checkpoint(3, RECIPE, found.model, found.optimizer, found.state), POLICY, alone)
    dist.barrier()
    found = _load(directory, _hsdp(square), world)
    _is_all(found)
    checkpoint.save(directory, Checkpoint(4, RECIPE, found.model, found.optimizer, found.state), POLICY, world)
    found = _load(directory, _fsdp(line), world)
    _is_all(found)
    assert found.step == 4
    names = ["step-00000003", "step-00000004"]
    assert sorted(path.name for path in directory.iterdir()) == names


def _replicas_resize(directory: Path, world: World) -> None:
    """Data parallel 2 → 1 → 3: each replica is written once, by turns."""
    two, three = dist.new_group([0, 1], backend="gloo"), dist.new_group([0, 1, 2], backend="gloo")
    if world.rank < 2:
        pair = World(world.rank, 2, group=two)
        path = checkpoint.save(directory, _snapshot(1, _whole, pair), POLICY, pair)
        sizes = [sum(file.stat().st_size for file in path.glob(f"*-0000{rank}.safetensors")) for rank in range(2)]
        assert min(sizes) > 0.7 * max(sizes)
    if world.first:
        found = _load(directory, _whole, World())
        _is_all(found)
        checkpoint.save(directory, Checkpoint(2, RECIPE, found.model, found.optimizer, found.state), POLICY, World())
    dist.barrier()
    if world.rank < 3:
        found = _load(directory, _whole, World(world.rank, 3, group=three))
        _is_all(found)
        assert found.step == 2


def _stages_hold_their_own_names(directory: Path, world: World) -> None:
    """Pipeline stages on ranks 0, 1 and 2, 3, each sharded over its two; then all on one rank, and back."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "fsdp"))
    early = {"embed", "up"}
    mine = early if world.rank < 2 else SHAPES.keys() - early
    split = _fsdp(mesh["fsdp"])
    whole = _snapshot(5, lambda name, tensor: split(name, tensor) if name in mine else tensor, world)
    model = {name: tensor for name, tensor in whole.model.items() if name in mine}
    optimizer = {name: tensor for name, tensor in whole.optimizer.items() if name.partition("/")[0] in mine}
    checkpoint.save(directory, Checkpoint(5, RECIPE, model, optimizer, {}), POLICY, world)
    _is_all(_load(directory, _whole, World()))
    path = directory / "step-00000005"
    empty = {name: split(name, torch.zeros(SHAPES[name])) for name in sorted(mine)}
    found = checkpoint.load(path, empty, world)
    for name in mine:
        assert torch.equal(found.model[name].to_local(), whole.model[name].to_local())  # type: ignore[attr-defined]
    assert found.optimizer.keys() == optimizer.keys()
    with pytest.raises(CheckpointError, match="does not fit the model: only one of them has norm"):
        checkpoint.load(path, {n: t for n, t in empty.items() if n != "norm"}, world)
    dist.barrier()


def _generators_come_back(directory: Path, world: World) -> None:
    torch.manual_seed(world.rank)
    before = _snapshot(1, _whole, world)
    state = generators.state(world.device)
    snapshot = Checkpoint(1, RECIPE, before.model, before.optimizer, {"ranks": world.size}, state)
    checkpoint.save(directory, snapshot, POLICY, world)
    expected = torch.rand(3)
    generators.restore(_load(directory, _whole, world).generators, world.device)
    assert torch.equal(torch.rand(3), expected)
    assert _load(directory, _whole, World()).generators == {}  # another number of ranks: no state is theirs


def _a_full_disk_on_one_rank(directory: Path, world: World) -> None:
    """Every rank gets the same error; what was there stays; the next save succeeds; beside training it is survived."""
    checkpoint.save(directory, _snapshot(1, _whole, world), POLICY, world)
    write = shards.write

    def full(path: Path, parts: Any) -> Any:
        write(path, parts[:1])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with pytest.MonkeyPatch.context() as patch:
        if world.rank == 2:
            patch.setattr(shards, "write", full)
        with pytest.raises(CheckpointError, match="step-00000002: No space left on device"):
            checkpoint.save(directory, _snapshot(2, _whole, world), POLICY, world)
        saver = Saver(directory, POLICY, world)
        saver.save(_snapshot(3, _whole, world))
        with pytest.raises(CheckpointError, match="step-00000003: No space left on device"):
            saver.wait()
    dist.barrier()
    assert [path.name for path in directory.iterdir()] == ["step-00000001"]
    _is_all(_load(directory, _whole, world))
    saver.save(_snapshot(4, _whole, world))
    saver.wait()
    saver.close()
    assert _load(directory, _whole, world).step == 4


def _training_goes_on_while_it_is_written(directory: Path, world: World) -> None:
    """What is saved is the state at the call, whatever happens to the tensors then."""
    line = init_device_mesh("cpu", (4,))
    saver = Saver(directory, POLICY, world)
    snapshot = _snapshot(1, _fsdp(line), world)
    for _ in range(2):  # the second time into the same memory
        assert saver.save(snapshot) > 0
        for tensor in (*snapshot.model.values(), *snapshot.optimizer.values()):
            tensor.zero_()
        saver.wait()
        _is_all(_load(directory, _fsdp(line), world))
        snapshot = _snapshot(2, _fsdp(line), world)
    saver.close()


def _what_is_missing_is_named(directory: Path, world: World) -> None:
    if world.rank == 1:  # as if a stage's rank gave nothing
        snapshot = Checkpoint(1, RECIPE, {}, {}, {})
    else:
        line = DTensor.from_local(torch.ones(2, 3), init_device_mesh("cpu", (4,)), [Shard(0)], run_check=False)
        snapshot = Checkpoint(1, RECIPE, {"w": line}, {}, {})
    if world.rank == 1:
        init_device_mesh("cpu", (4,))
    with pytest.raises(CheckpointError, match="hold 72 bytes of w: expected 96"):
        checkpoint.save(directory, snapshot, POLICY, world)


CHECKS = (
    _any_mesh_to_any_other,
    _replicas_resize,
    _stages_hold_their_own_names,
    _generators_come_back,
    _a_full_disk_on_one_rank,
    _training_goes_on_while_it_is_written,
    _what_is_missing_is_named,
)


def _check_all(rank: int, root: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    logging.getLogger("llmos.train").setLevel(logging.CRITICAL)
    dist.init_process_group("gloo", store=dist.FileStore(str(root / "store"), RANKS), rank=rank, world_size=RANKS)
    for check in CHECKS:
        check(root / check.__name__, World.current())
        dist.barrier()
    dist.destroy_process_group()


@pytest.mark.timeout(120)
def test_four_ranks(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_check_all, args=(rank, tmp_path), daemon=True) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(100)
    assert [process.exitcode for process in ranks] == [0] * RANKS
