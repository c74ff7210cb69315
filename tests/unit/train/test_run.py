"""What a worker is told: its rank follows from the node it is on. What it wrote of steps that are done again goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmos.files import append_json
from llmos.layout import AttemptDirs
from llmos.parallel.world import World
from llmos.train.loop import _forget
from llmos.train.run import ranks_of


@pytest.mark.parametrize(
    ("found", "nodes", "expected"),
    [
        (["a", "a"], ["a", "a"], [0, 1]),
        (["b", "a"], ["a", "b"], [1, 0]),
        (["b", "b", "a", "a"], ["a", "a", "b", "b"], [2, 3, 0, 1]),
        (["a", "a", "b"], ["b", "a", "a"], [1, 2, 0]),
    ],
)
def test_ranks_are_where_the_plan_has_put_them(found: list[str], nodes: list[str], expected: list[int]) -> None:
    assert ranks_of(found, nodes) == expected


def test_steps_that_are_done_again_are_written_once(tmp_path: Path) -> None:
    dirs = AttemptDirs(tmp_path)
    files = (dirs.metrics, dirs.samples(0))
    for file in files:
        for step in range(1, 6):
            append_json(file, {"step": step})
        with file.open("a") as torn:
            torn.write('{"st')  # its writer was killed in the middle
    _forget(dirs, World(rank=1, size=2), step=2)  # another rank's business
    assert len(dirs.metrics.read_text().splitlines()) == 6
    _forget(dirs, World(), step=2)
    for file in files:
        assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2]
    _forget(AttemptDirs(tmp_path / "new"), World(), step=0)
    assert not (tmp_path / "new").exists()
