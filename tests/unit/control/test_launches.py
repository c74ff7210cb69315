"""What the log of Ray's autoscaler says about launches that fail."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from llmos.control.launches import LONGEST_PAUSE_S, PAUSE_S, Launches
from llmos.core.types import NodeKind, Resources

GPU = NodeKind("gpu", Resources(), most=4)
CPU = NodeKind("cpu", Resources())
BEGAN = time.mktime((2026, 11, 28, 1, 0, 0, 0, 0, -1))


def line(second: int, message: str) -> str:
    return f"2026-11-28 01:{second // 60:02}:{second % 60:02},123\tINFO node_provider.py:463 -- {message}\n"


def failed(second: int, why: str = "no capacity in eu-1", kind: str = "gpu") -> str:
    return line(second, f"Failed to launch 2 nodes of type {kind}: {why}")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "monitor.log"


def add(log: Path, *lines: str) -> None:
    with log.open("a") as file:
        file.writelines(lines)


def test_each_further_failure_doubles_the_pause_and_a_launch_ends_it(log: Path) -> None:
    launches = Launches(log)
    launches.look()  # it is not there yet
    assert launches.held(GPU) == GPU
    add(log, line(0, "Launching 2 nodes of type gpu."), failed(1))
    launches.look()
    held = launches.held(GPU)
    assert held.trouble == "no capacity in eu-1" and held.not_before == BEGAN + 1 + PAUSE_S
    assert launches.held(CPU) == CPU
    add(log, failed(20), failed(21, "no capacity: none: at all", "cpu"))
    launches.look()
    assert launches.held(GPU).not_before == BEGAN + 20 + 2 * PAUSE_S
    assert launches.held(CPU).trouble == "no capacity: none: at all"
    add(log, *(failed(30 + second) for second in range(20)))
    launches.look()
    assert launches.held(GPU).not_before == BEGAN + 49 + LONGEST_PAUSE_S
    add(log, line(60, "Launched 1 nodes of type gpu."))
    launches.look()
    assert launches.held(GPU) == GPU


def test_who_begins_later_knows_the_same_and_half_a_line_is_not_read(log: Path) -> None:
    early = Launches(log)
    whole = [failed(1, "first"), line(2, "Adding 1 node(s) of type gpu."), "Traceback (most recent call last):\n"]
    whole.append(failed(3, "second"))
    text = "".join(whole)
    for cut in range(0, len(text), 7):
        log.write_text(text[:cut])
        early.look()
    log.write_text(text)
    early.look()
    late = Launches(log)
    late.look()
    assert early.held(GPU) == late.held(GPU)
    assert (late.held(GPU).trouble, late.held(GPU).not_before) == ("second", BEGAN + 3 + 2 * PAUSE_S)


def test_a_log_that_begins_anew_is_read_from_its_beginning(log: Path) -> None:
    launches = Launches(log)
    add(log, *(failed(second) for second in range(3)))
    launches.look()
    log.write_text(failed(9, "after the rotation"))
    launches.look()
    assert launches.held(GPU).trouble == "after the rotation"
