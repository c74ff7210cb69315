"""What another size is worth: measured goodput, the cost of a resize, and a margin."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmos.core.goodput import best_first, goodput, pays, worth
from llmos.core.types import Attempt
from tests.unit.core.values import NOW, RUNNING, cpus, decide, job, node, see, told

MEASURED = ((2, 2.0), (4, 3.0), (8, 2.5))
ELASTIC = job("a", cpus(1, 1), larger=tuple(cpus(*[1] * n) for n in (4, 8)), goodput=MEASURED)


@pytest.mark.parametrize(("size", "value"), [(1, 1.0), (2, 2.0), (3, 2.5), (4, 3.0), (6, 2.75), (8, 2.5), (16, 5.0)])
def test_goodput_is_measured_or_between_what_was(size: int, value: float) -> None:
    assert goodput(ELASTIC, size) == value
    assert goodput(replace(ELASTIC, goodput=()), size) == size


def test_the_best_size_comes_first() -> None:
    assert [len(gang.bundles) for gang in best_first(ELASTIC)] == [4, 8, 2]
    assert [len(gang.bundles) for gang in best_first(replace(ELASTIC, goodput=()))] == [8, 4, 2]
    assert told(decide(see([node("n", 9)]), ELASTIC)) == ["start a-1 on n n n n"]


def test_what_more_bundles_are_worth_is_what_they_add() -> None:
    assert worth(ELASTIC, 4) == pytest.approx((3.0 - 2.0) / 2.0)
    assert worth(ELASTIC, 8) == pytest.approx((2.5 - 2.0) / 6.0)
    assert worth(replace(ELASTIC, goodput=((2, 700.0), (8, 2800.0))), 8) == pytest.approx(1.0)  # in whatever unit
    assert worth(replace(ELASTIC, goodput=()), 8) == 1.0
    assert worth(ELASTIC, 2) == 1.0 and worth(replace(ELASTIC, goodput=((2, 0.0),)), 4) == 1.0


@pytest.mark.parametrize(("left_s", "cost", "expected"), [(300.0, 49.0, True), (300.0, 51.0, False), (-5.0, 9.0, True)])
def test_a_resize_must_gain_twice_what_it_costs(left_s: float, cost: float, expected: bool) -> None:
    assert pays(replace(ELASTIC, resize_s=cost), 2, 4, left_s) is expected
    assert not pays(ELASTIC, 4, 8, left_s)


def test_a_job_grows_to_the_size_that_it_gains_by() -> None:
    mine = replace(ELASTIC, attempt=1, attempts=1, opened_at=NOW - 100, placement=("n", "n"))
    attempt = Attempt("a", 1, RUNNING, nodes=("n", "n"))
    (action,) = decide(see([node("n", 9)], attempt), mine).actions
    assert action.why == "grows from 2 workers to 4: there is room"
    dear = replace(mine, resize_s=50.0, estimate_s=350.0)  # 250 s to go: they would take 167 s, and 50 s in between
    assert told(decide(see([node("n", 9)], attempt), dear)) == []
    assert told(decide(see([node("n", 9)], attempt), replace(dear, estimate_s=500.0))) == ["stop a-1"]
