"""Ranks as real processes on gloo: each check runs on every rank of one group, and reports through its exit code."""

from __future__ import annotations

import copy
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from llmos.errors import CapacityError, DataError, WorkerLost
from llmos.parallel import data
from llmos.parallel.data import GradientBuffer
from llmos.parallel.mesh import RankMesh
from llmos.parallel.world import World


@given(st.integers(0, 1000), st.integers(1, 64))
def test_shares_are_everything_once_in_order(count: int, size: int) -> None:
    shares = [World(rank, size).share(count) for rank in range(size)]
    assert [item for share in shares for item in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_nothing_is_sent() -> None:
    world = World()
    assert world.first and world.total([1.5, 2.0]) == [1.5, 2.0]
    assert world.from_first(lambda: {"a": [1]}) == {"a": [1]}
    assert world.from_all(lambda: 7) == [7] and world.apart().group is None
    assert World.current().size == 1


def _sums(world: World) -> None:
    assert World.current() == world
    assert world.total([world.rank, 0.5]) == [0 + 1 + 2, 1.5]


def _first_speaks_for_all(world: World) -> None:
    made = world.from_first(lambda: {"path": "/a", "rank": world.rank, "text": "ü" * 1000})
    assert made == {"path": "/a", "rank": 0, "text": "ü" * 1000}
    assert world.from_first(lambda: None) is None


def _errors_reach_all(world: World) -> None:
    def fail() -> None:
        raise DataError("no text here", hint="Give some.", param="data.path")

    with pytest.raises(DataError) as caught:
        world.from_first(fail)
    assert (caught.value.message, caught.value.hint, caught.value.param) == ("no text here", "Give some.", "data.path")

    def fill() -> None:
        raise CapacityError("full", retry_after_s=3.0)

    with pytest.raises(CapacityError, match="full"):
        world.from_first(fill)

    def crash() -> None:
        raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError if world.first else WorkerLost, match="by zero"):
        world.from_first(crash)


def _all_speak_to_all(world: World) -> None:
    said = world.from_all(lambda: {"rank": world.rank, "text": "ü" * 100 * world.rank})
    assert [one["rank"] for one in said] == [0, 1, 2] and [len(one["text"]) for one in said] == [0, 100, 200]

    def fail() -> None:
        if world.rank:
            raise DataError(f"rank {world.rank} has no text", hint="Give some.")

    with pytest.raises(DataError, match=f"rank {world.rank or 1} has no text") as caught:
        world.from_all(fail)
    assert caught.value.hint == "Give some."

    def crash() -> None:
        if world.rank == 2:
            raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError if world.rank == 2 else WorkerLost, match="by zero"):
        world.from_all(crash)


def _two_groups_do_not_disturb_each_other(world: World) -> None:
    apart = world.apart()
    with ThreadPoolExecutor(1) as thread:
        beside = [thread.submit(apart.from_all, lambda number=number: number) for number in range(50)]
        for _ in range(50):
            assert world.total([1.0]) == [3.0]
        assert [one.result() for one in beside] == [[number] * 3 for number in range(50)]
    dist.destroy_process_group(apart.group)


def _gradients_are_those_of_one_rank(world: World) -> None:
    _check_gradients(world, early=False, reduction=torch.float32, tolerance=1e-6)


def _sums_beside_the_backward_pass_are_the_same(world: World) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "BUCKET_BYTES", 4)  # each gradient has a bucket of its own
        _check_gradients(world, early=True, reduction=torch.float32, tolerance=1e-6)
        _check_gradients(world, early=True, reduction=torch.bfloat16, tolerance=3e-2)
        _check_gradients(world, early=False, reduction=torch.float32, tolerance=1e-6)


def _check_gradients(world: World, early: bool, reduction: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    alone = copy.deepcopy(model)
    batch = torch.randn(7, 5)
    (alone(batch).square().sum() / 7).backward()
    buffer = GradientBuffer(list(model.parameters()), RankMesh(world, dp=3), riders=2, reduction=reduction)
    for _ in range(2):  # the second time proves that zero() forgets the first
        buffer.zero()
        share = world.share(7)
        for row in share:  # micro-batches of one, of unequal number
            if early and row == share[-1]:
                assert not buffer.begun
                buffer.last_pass(model.parameters())
            (model(batch[row]).square().sum() / 7).backward()
        assert buffer.begun == (3 if early else 0)  # of four: the last waits for the riders
        riders = buffer.sum([float(world.rank), torch.tensor(0.25)])
    assert riders == [3.0, 0.75]
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        assert ours.grad is not None and torch.allclose(ours.grad, theirs.grad, atol=tolerance)


def _check_all(rank: int, store: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 3), rank=rank, world_size=3)
    checks: tuple[Callable[[World], None], ...] = (
        _sums,
        _first_speaks_for_all,
        _errors_reach_all,
        _all_speak_to_all,
        _two_groups_do_not_disturb_each_other,
        _gradients_are_those_of_one_rank,
        _sums_beside_the_backward_pass_are_the_same,
    )
    for check in checks:
        check(World(rank, 3))
    dist.destroy_process_group()


def test_three_ranks_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["llmos.train.local"])  # as other tests do: there is one such process
    ranks = [context.Process(target=_check_all, args=(rank, str(tmp_path / "store")), daemon=True) for rank in range(3)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(40)
    assert [process.exitcode for process in ranks] == [0, 0, 0]
