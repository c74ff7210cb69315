import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.spec import Optimizer
from llmos.train.schedule import learning_rate


def test_warms_up_to_the_peak_and_falls_to_the_minimum() -> None:
    spec = Optimizer(learning_rate=1.0, warmup_steps=4, min_learning_rate_ratio=0.1)
    rates = [learning_rate(step, 14, spec) for step in range(14)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[8] == pytest.approx(0.55)  # half-way down
    assert rates[-1] == pytest.approx(0.1)


@given(st.integers(1, 300), st.integers(0, 400), st.floats(0, 1))
def test_rises_then_falls_and_stays_within_bounds(steps: int, warmup: int, ratio: float) -> None:
    spec = Optimizer(learning_rate=0.5, warmup_steps=warmup, min_learning_rate_ratio=ratio)
    rates = [learning_rate(step, steps, spec) for step in range(steps)]
    peak = min(warmup, steps)
    assert all(0 <= rate <= 0.5 for rate in rates)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if warmup:
        assert rates[0] > 0
