"""When a replica says of itself that it makes no progress. No cluster needed."""

from __future__ import annotations

import pytest

from deployments.heart import STALL_S, Progress

BUSY = {"running": 1, "waiting": 0}


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.progress = Progress(lambda: self.now)

    def after(self, seconds: float, **stats: float) -> bool:
        self.now += seconds
        return self.progress.stalled({**BUSY, **stats})


@pytest.fixture
def world() -> World:
    return World()


def test_one_whose_steps_end_goes_on(world: World) -> None:
    assert not any(world.after(STALL_S - 0.1, steps=step) for step in range(5))


def test_one_that_is_asked_and_ends_no_step_stalls_until_one_ends(world: World) -> None:
    assert not world.after(0.0, steps=7)
    assert not world.after(STALL_S, steps=7)
    assert world.after(0.1, steps=7) and world.after(100.0, steps=7, running=0, waiting=3)
    assert not world.after(1.0, steps=8)


def test_nobody_stalls_who_has_nothing_to_do(world: World) -> None:
    assert not any(world.after(STALL_S + 1, steps=7, running=0) for _ in range(3))
    assert not world.after(STALL_S, steps=7)  # time counts from the first request on
    assert world.after(0.1, steps=7)


def test_steps_that_take_long_are_waited_for(world: World) -> None:
    limit_s = 3 * STALL_S
    assert not world.after(0.0, steps=7, step_limit_s=limit_s)
    assert not world.after(limit_s, steps=7, step_limit_s=limit_s)
    assert world.after(0.1, steps=7, step_limit_s=limit_s)
    assert not world.after(limit_s, steps=8, step_limit_s=0.5)  # and a short limit makes nobody impatient
    assert not world.after(STALL_S, steps=8, step_limit_s=0.5)


def test_an_engine_that_counts_no_steps_does_not_stall(world: World) -> None:
    assert not any(world.after(STALL_S + 1) for _ in range(3))
