"""``block_replay`` on traces of a few prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import serve_blocks
from benchmarks.rows import Options, Unmeasured


def _trace(directory: Path, *prompts: list[int]) -> Options:
    directory.mkdir(exist_ok=True)
    lines = [json.dumps({"hash_ids": hashes}) for hashes in prompts]
    (directory / serve_blocks.TRACE).write_text("\n".join(lines))
    return Options(data=directory)


def test_the_share_of_blocks_that_was_there_already(tmp_path: Path) -> None:
    _trace(tmp_path / "traces", [1, 2, 3], [1, 2, 3], [1, 2, 3, 4], [1, 2, 9], [1, 2, 3])
    found = serve_blocks.block_replay(Options(data=tmp_path))
    assert found.value == found.peer_value == pytest.approx(11 / 16)
    assert found.why.startswith("0.688 unbounded; 5 prompts of 16 blocks")


def test_with_little_room_prefixes_in_use_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_blocks, "ROOM", 6)
    prompts = [[1, 2, 3], *([1, 2, 3] for _ in range(20)), *([n] for n in range(10, 16)), [1, 2, 3]]
    found = serve_blocks.block_replay(_trace(tmp_path, *prompts))
    assert found.peer_value == pytest.approx(60 / 72) and found.value == pytest.approx(63 / 72)
    assert found.ratio == pytest.approx(63 / 60)


def test_too_little_found_without_bounds_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="0.2500 of the blocks are found: expected 0.640"):
        serve_blocks.block_replay(_trace(tmp_path, [1, 2], [1], [3, 4, 5], [3], [6]))


def test_without_the_trace_it_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(Unmeasured, match="traces/mooncake_synthetic.jsonl"):
        serve_blocks.block_replay(Options(data=tmp_path))
