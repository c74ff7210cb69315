"""Sums through shared memory: right, the same on every rank, and only where all ranks share it."""

from __future__ import annotations

import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from llmos.infer import shared_sum
from llmos.infer.shared_sum import ROOM, SharedSum, agree

RANKS = 3
SIZES = (5, ROOM + 7, 1, 64, 64, 3)


def _parts(rank: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn((2, size), generator=generator) for size in SIZES]


@pytest.mark.skipif(platform.machine() not in shared_sum._ORDERED, reason="needs a processor that keeps the order")
def test_sums_are_right_and_the_same_on_every_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_sum, "shared_directory", lambda: tmp_path)
    store = dist.HashStore()

    def rank(number: int) -> list[Tensor]:
        total, parts = agree(store, "stage 0", number, RANKS), _parts(number)
        assert total is not None
        for _ in range(3):  # a second sum must not disturb the first
            again = [part.clone() for part in parts]
            for part in again:
                total(part)
        return again

    with ThreadPoolExecutor(RANKS) as pool:
        found = list(pool.map(rank, range(RANKS)))
    expected = [sum(parts, torch.zeros(())) for parts in zip(*map(_parts, range(RANKS)), strict=True)]
    for sums in found:
        for ours, first, right in zip(sums, found[0], expected, strict=True):
            assert torch.equal(ours, first) and torch.allclose(ours, right, atol=1e-6)
    assert not Path(store.get("stage 0/file").decode()).exists()


def test_ranks_without_common_memory_agree_to_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_sum, "shared_directory", lambda: None)
    store = dist.HashStore()
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda number: agree(store, "stage 0", number, 2), range(2))) == [None, None]


def test_one_that_cannot_open_the_file_keeps_the_others_from_it(tmp_path: Path) -> None:
    store = dist.HashStore()
    store.set("stage 0/file", str(tmp_path / "of another machine"))
    store.set("stage 0/0", "yes")
    assert agree(store, "stage 0", 1, 2) is None


def test_more_than_the_room_is_summed_in_parts(tmp_path: Path) -> None:
    file = tmp_path / "memory"
    file.write_bytes(bytes(shared_sum.size_bytes(1)))
    whole = torch.arange(2 * ROOM + 3, dtype=torch.float32)
    alone = SharedSum(file, 0, 1)
    part = whole.clone()
    alone(part)
    assert torch.equal(part, whole)
