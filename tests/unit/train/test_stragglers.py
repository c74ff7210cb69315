"""A rank that keeps being slower than the others by its own work is named, and nobody else is."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmos.parallel.world import World
from llmos.spec import to_yaml
from llmos.train.stragglers import ROUND_STEPS, ROUNDS, Stragglers, slow_ranks


@pytest.mark.parametrize(
    ("rounds", "factor", "slow"),
    [
        ([[1.0, 1.0, 1.6]] * 3, 1.5, {2}),
        ([[1.0, 1.0, 1.6]] * 2, 1.5, set()),  # not long enough
        ([[1.0, 1.0, 1.4]] * 9, 1.5, set()),
        ([[1.0, 3.0]] * 3, 1.5, {1}),  # of two, the faster one is the median
        ([[3.0, 1.0, 1.0, 3.0, 1.0]] * 3, 2.0, {0, 3}),
        ([[1.0, 9.0, 1.0], [1.0, 1.0, 1.0], [1.0, 9.0, 1.0], [1.0, 9.0, 1.0]], 1.5, set()),  # not always
        ([[1.0, 9.0, 1.0], [9.0, 1.0, 1.0], [1.0, 1.0, 9.0]], 1.5, set()),  # each once
        ([[5.0]] * 9, 1.5, set()),  # alone
    ],
)
def test_who_is_slow(rounds: list[list[float]], factor: float, slow: set[int]) -> None:
    assert slow_ranks(rounds, factor) == slow


def test_it_is_said_once_until_it_has_passed(tmp_path: Path) -> None:
    events, rng = tmp_path / "events.jsonl", random.Random(0)
    watched = Stragglers(1.5, World(), events)
    watched._hosts = ["a", "b", "c"]
    for slow in (True, True, False, True):
        for step in range(ROUNDS * ROUND_STEPS):
            noise = 10.0 if step % ROUND_STEPS == 3 else rng.uniform(0.9, 1.1)  # one step says nothing
            watched.observe([noise, 1.0, 3.0 if slow else 1.0])
    told = [json.loads(line) for line in events.read_text().splitlines()]
    assert [event["what"] for event in told] == ["slow_rank"] * 2
    assert re.match(r"rank 2 on c works 3 s a step, (2\.9|3\.0) times the median rank's 1", told[0]["why"])


SLOW = """
import sys, time
import torch.distributed as dist
from llmos.train.__main__ import main
from llmos.parallel.pipeline import Direct

def slowed(self, *told):
    time.sleep(0.2 * dist.get_rank())
    return honest(self, *told)

honest, Direct.accumulate = Direct.accumulate, slowed
if __name__ == "__main__":  # this file is the other rank's main module too
    sys.exit(main())
"""


@pytest.mark.slow
def test_a_slowed_rank_is_named_although_all_take_equally_long(trainer: Any, tmp_path: Path) -> None:
    spec, script = tmp_path / "job.yaml", tmp_path / "slow.py"
    spec.write_text(to_yaml(trainer.job(mesh={"dp": 2}, steps=ROUNDS * ROUND_STEPS + 2, watchdog={"slow_rank": 1.5})))
    script.write_text(SLOW)
    command = [sys.executable, str(script), str(spec), "--state-dir", str(trainer.layout.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "SLOW RANK: rank 1 on " in done.stderr and "times the median rank's" in done.stderr
    assert "rank 0 on" not in done.stderr
    (event,) = map(json.loads, trainer.layout.job("tiny").attempt(1).events.read_text().splitlines())
    assert event["what"] == "slow_rank" and event["why"].startswith("rank 1 on ")
