"""Ranks that hang end, and say where each of them was."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmos.control import attempt
from llmos.errors import DataError, DeadlineError, WorkerLost
from llmos.parallel.world import World
from llmos.spec import Watchdog as Policy
from llmos.spec import to_yaml
from llmos.train import cause, hang
from llmos.train.limits import collective_timeout_s, step_limit_s
from llmos.train.watchdog import Watchdog

SUM = """a 0x01
Timeout (0:00:02)!
Thread 0x02 (most recent call first):
  File "/lib/concurrent/futures/thread.py", line 81 in _worker
  File "/lib/threading.py", line 982 in run

Thread 0x03 (most recent call first):
  File "/x/llmos/train/watchdog.py", line 80 in _watch

Thread 0x01 (most recent call first):
  File "/lib/torch/distributed/distributed_c10d.py", line 3252 in all_reduce
  File "/x/llmos/parallel/mesh.py", line 45 in sum
  File "/x/llmos/train/training.py", line 102 in advance
"""
FEED = """b 0x01
Timeout (0:00:02)!
Thread 0x02 (most recent call first):
  File "/x/llmos/train/tokens.py", line 12 in read
  File "/lib/concurrent/futures/thread.py", line 58 in run

Thread 0x01 (most recent call first):
  File "/lib/threading.py", line 327 in wait
  File "/x/llmos/train/feed.py", line 63 in take
  File "/x/llmos/train/training.py", line 101 in advance
"""


def test_the_report_names_who_keeps_the_others_waiting() -> None:
    ranks = {0: hang.parse(SUM), 1: hang.parse(FEED), 2: hang.parse(SUM)}
    what, *stacks = hang.report(600.0, ranks).message.splitlines()
    assert what == (
        "no step has ended for 600 s: rank 1 on b is not in a collective but in take (feed.py:63); "
        "the others wait in collectives"
    )
    assert stacks[0] == "rank 0 (a), 2 (a), in a collective:"  # equal stacks are shown once
    assert [line for line in stacks if "_worker" in line or "watchdog" in line] == []
    assert stacks[stacks.index("rank 1 (b):") + 1].endswith("in wait")
    assert stacks[stacks.index("  another thread of it:") + 1].endswith('tokens.py", line 12 in read')
    assert hang.parse("b 0x09\n" + SUM.partition("\n")[2]) is None  # not there yet
    assert "rank 1 has left no stack" in hang.report(1.0, {0: ranks[0], 1: None}).message
    assert "all ranks wait for each other" in hang.report(1.0, {0: ranks[0], 1: ranks[2]}).message
    assert "for 1 s: it is in take (feed.py:63)\n" in hang.report(1.0, {0: ranks[1]}).message


def test_limits_fit_the_steps_and_collectives_outlast_them() -> None:
    assert step_limit_s("auto", []) == 1800
    assert step_limit_s("auto", [0.1] * 9) == 600
    assert step_limit_s("auto", [90.0, 60.0, 60.0, 500.0]) == 1500
    assert step_limit_s("auto", [3600.0] * 9) == 7200
    assert step_limit_s(5.0, [3600.0] * 9) == 5
    for timeout in ("auto", 1.0, 20_000.0):
        assert collective_timeout_s(timeout) > step_limit_s(timeout, [1e9] * 9)


def test_nothing_happens_while_something_does(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os._exit", lambda code: pytest.fail("ended"))
    run = trainer.run()
    watchdog = Watchdog(Policy(timeout=0.2), World(), run.attempt)
    for _ in range(8):
        time.sleep(0.25)
        watchdog.alive()
    watchdog.close()
    assert cause.left(run.attempt.cause) is None


def test_the_first_cause_counts(tmp_path: Path) -> None:
    path = tmp_path / "cause.json"
    lost = WorkerLost("another rank is gone")
    with pytest.raises(WorkerLost), cause.shared(path):
        raise lost
    for name in ("one", "two"):
        with pytest.raises(DataError, match=name), cause.shared(path):
            raise DataError(f"{name} is missing", hint="Bring it back.")
    with pytest.raises(DataError, match="one is missing") as caught, cause.shared(path):
        raise lost
    assert caught.value.hint == "Bring it back." and caught.value.__cause__ is lost
    assert [file.name for file in tmp_path.iterdir()] == ["cause.json"]


HANGS = """
import ctypes, sys, time
import torch.distributed as dist
from llmos.train.__main__ import main
from llmos.train.training import Training
from llmos.train.feed import Feed

def patched(self, *told):
    if {when} == 3 and dist.get_rank() == {rank}:
        {sleep}
    return honest(self, *told)

honest, {where} = {where}, patched
if __name__ == "__main__":  # this file is the other rank's main module too
    sys.exit(main())
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("rank", "sleep", "where", "when", "place"),
    [
        (1, "time.sleep(600)", "Feed._read", "told[0]", "take (feed.py:"),
        pytest.param(
            *(0, "time.sleep(600)", "Feed._read", "told[0]", "take (feed.py:"),
            marks=pytest.mark.slow,
        ),
        pytest.param(  # holds the interpreter's lock
            *(1, "ctypes.PyDLL(None).sleep(600)", "Training._differentiate", "self.step", "advance (training.py:"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_rank_that_sleeps_for_ever_is_found(
    trainer: Any, tmp_path: Path, rank: int, sleep: str, where: str, when: str, place: str
) -> None:
    spec, script = tmp_path / "job.yaml", tmp_path / "hangs.py"
    spec.write_text(to_yaml(trainer.job(mesh={"dp": 2}, watchdog={"timeout": "2s"}, checkpoint={"every_steps": 2})))
    script.write_text(HANGS.format(rank=rank, sleep=sleep, where=where, when=when))
    command = [sys.executable, str(script), str(spec), "--state-dir", str(trainer.layout.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert f"no step has ended for 2 s: rank {rank} on " in done.stderr
    assert f"is not in a collective but in {place}" in done.stderr
    told = done.stderr.partition("error: ")[2]
    assert "rank 0 (" in told and "rank 1 (" in told
    assert re.search(r"in a collective:\n +File .*line \d+ in (all_reduce|wait)", told)
    assert 'hangs.py", line' in told  # the thread that reads is the one that hangs
    dirs = trainer.layout.job("tiny")
    error = cause.left(dirs.attempt(1).cause)
    assert isinstance(error, DeadlineError) and attempt.failure(error)["retry"]
    assert str(error) in done.stderr
