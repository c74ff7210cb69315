from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmos.front.windows import WINDOW_S, Window

GAPS = st.lists(st.floats(0, 30), min_size=1, max_size=25)
AMOUNTS = st.lists(st.integers(1, 40), min_size=25, max_size=25)


def asked(window: Window, gaps: list[float], amounts: list[int], limit: int) -> list[tuple[float, int, int]]:
    """(when, how much, the second) of what was taken by somebody who asks again and again, with these gaps."""
    now, taken = 1000.25, []
    for gap, amount in zip(gaps, amounts, strict=False):
        now += gap
        if amount <= limit and not window.wait_s(amount, limit, now):
            taken.append((now, amount, window.take(amount, now)))
    return taken


@given(GAPS, AMOUNTS, st.integers(1, 100))
def test_no_minute_has_more_than_the_limit(gaps: list[float], amounts: list[int], limit: int) -> None:
    taken = asked(Window(), gaps, amounts, limit)
    for end, _, _ in taken:  # the fullest minutes end with something taken
        assert sum(amount for at, amount, _ in taken if end - WINDOW_S <= at <= end) <= limit


@given(GAPS, AMOUNTS, st.integers(10, 100), st.integers(1, 10))
def test_waiting_as_long_as_told_is_enough(gaps: list[float], amounts: list[int], limit: int, more: int) -> None:
    window = Window()
    taken = asked(window, gaps, amounts, limit)
    now = (taken[-1][0] if taken else 1000.25) + 0.125
    wait_s = window.wait_s(more, limit, now)
    assert 0 <= wait_s <= WINDOW_S + 1.01
    if wait_s > 1.1:  # not much longer than needed: the window's grain is a second
        assert window.wait_s(more, limit, now + wait_s - 1.1) > 0
    assert window.wait_s(more, limit, now + wait_s) == 0


@given(GAPS, AMOUNTS, AMOUNTS, st.lists(st.floats(0, 100), min_size=25, max_size=25))
def test_what_is_given_back_was_never_taken(
    gaps: list[float], amounts: list[int], kept: list[int], runs: list[float]
) -> None:
    """At any time a window is as if only what was kept had been taken."""
    window, without = Window(), Window()
    now, running = 1000.25, list[tuple[float, int, int]]()
    for gap, amount, keep, run_s in zip(gaps, amounts, kept, runs, strict=False):
        now += gap
        running.append((now + run_s, amount - min(keep, amount), window.take(amount, now)))
        without.take(min(keep, amount), now)
    for end, back, second in sorted(running):
        now = max(now, end)
        window.give_back(back, second, now)
    assert window.look(now) == without.look(now)
    assert window.look(now + 2 * WINDOW_S) == 0 == window.empty_s(now + 2 * WINDOW_S)
