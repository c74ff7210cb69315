"""How many replicas a service gets: bounds, the promises, cold starts, and that a steady load moves nothing."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.core.replicas import (
    ATTAINED,
    BUSIEST,
    PEAKS,
    Promises,
    Rates,
    Scale,
    Traffic,
    demand,
    late,
    needed,
    scale,
    slots,
)

RATES = Rates(prompt_tokens_per_s=20_000, step_s=0.01, sequence_s=1e-4, most=64, start_s=60)
TRAFFIC = Traffic(requests_per_s=20, prompt=1000, answer=200)
PROMISES = Promises(first_token_s=1.0, token_s=0.05, queue_s=0.5)
TICK_S = 5.0

loads = st.floats(0, 1000)
rates = st.builds(
    Rates,
    prompt_tokens_per_s=st.floats(1e3, 1e5),
    step_s=st.floats(1e-3, 0.1),
    sequence_s=st.floats(0, 1e-3),
    most=st.integers(1, 256),
    start_s=st.sampled_from([0.0, 5.0, 60.0, 300.0]),
)
promises = st.builds(
    Promises,
    first_token_s=st.sampled_from([0.01, 0.5, 5.0, math.inf]),
    token_s=st.sampled_from([1e-4, 0.03, 0.2, math.inf]),
    queue_s=st.sampled_from([0.0, 1.0, math.inf]),
)
traffics = st.builds(
    Traffic,
    requests_per_s=loads,
    prompt=st.floats(0, 8000),
    answer=st.floats(0, 2000),
    waiting=st.integers(0, 1000),
    running=st.integers(0, 1000),
)
bounds = st.tuples(st.integers(0, 5), st.integers(0, 60)).map(lambda pair: (pair[0], pair[0] + pair[1]))
counts = st.integers(0, 80)


def busy(requests_per_s: float) -> Traffic:
    """So much has come for a while: as many are answered at once as come in the time that one takes."""
    steps_s = TRAFFIC.answer * (RATES.step_s + RATES.most * RATES.sequence_s) + RATES.most * TRAFFIC.prompt / 20_000
    return dataclasses.replace(TRAFFIC, requests_per_s=requests_per_s, running=round(requests_per_s * steps_s))


def erlang_c(offered: float, servers: int) -> float:
    """The exact chance to wait: Erlang's recursion."""
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = offered * blocked / (n + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))


def after(
    load: Callable[[float], Traffic],
    seconds: float,
    start: Scale,
    *,
    rates: Rates = RATES,
    promises: Promises = PROMISES,
    bounds: tuple[int, int] = (1, 1000),
) -> list[Scale]:
    """The decisions of every tick until ``seconds``."""
    found = [start]
    for tick in range(int(seconds / TICK_S)):
        found.append(scale(bounds, promises, load(tick * TICK_S), rates, found[-1], tick * TICK_S))
    return found[1:]


def moves(scales: Iterable[Scale]) -> int:
    found = [one.count for one in scales]
    return sum(a != b for a, b in itertools.pairwise(found))


@pytest.mark.parametrize(("offered", "servers"), [(0.5, 1), (0.9, 1), (3, 4), (8, 10), (50, 60), (95, 100), (900, 950)])
def test_the_chance_to_wait_is_nearly_erlangs(offered: float, servers: int) -> None:
    assert late(offered, servers, 0.0) == pytest.approx(erlang_c(offered, servers), abs=0.02)


@given(loads, st.integers(1, 256), st.floats(0.01, 100), st.sampled_from([0.0, 0.1, 1.0, math.inf]))
def test_the_fewest_replicas_are_enough_and_one_less_is_not(
    load: float, places: int, service_s: float, wait_s: float
) -> None:
    def holds(replicas: int) -> bool:
        keeps_up = load * service_s <= replicas * places * BUSIEST + 1e-6
        return keeps_up and late(load * service_s, replicas * places, wait_s / service_s) <= 1 - ATTAINED

    found = needed(load, places, service_s, wait_s)
    assert load == 0 or holds(found)
    assert found == 0 or not holds(found - 1)


@given(bounds, promises, traffics, rates, counts, st.floats(0, 1e6))
def test_never_below_the_least_or_above_the_most(
    limits: tuple[int, int], promised: Promises, traffic: Traffic, measured: Rates, count: int, now: float
) -> None:
    found = scale(limits, promised, traffic, measured, Scale(count), now)
    assert limits[0] <= found.count <= limits[1]
    assert found.why


@given(bounds, promises, traffics, rates, st.lists(st.integers(0, 400), min_size=1, max_size=6), loads)
def test_more_load_never_gets_fewer_replicas(
    limits: tuple[int, int], promised: Promises, traffic: Traffic, measured: Rates, past: list[int], more: float
) -> None:
    before = Scale(limits[0])
    for tick, load in enumerate(past):
        then = dataclasses.replace(traffic, requests_per_s=load)
        before = scale(limits, promised, then, measured, before, tick * TICK_S)
    now = len(past) * TICK_S
    less = scale(limits, promised, traffic, measured, before, now)
    busier = dataclasses.replace(traffic, requests_per_s=traffic.requests_per_s + more)
    assert scale(limits, promised, busier, measured, before, now).count >= less.count
    for name in ("waiting", "running"):
        queued = dataclasses.replace(traffic, **{name: getattr(traffic, name) + int(more)})
        assert scale(limits, promised, queued, measured, before, now).count >= less.count


@given(bounds, promises, traffics, rates, counts)
def test_a_steady_load_reaches_a_steady_count(
    limits: tuple[int, int], promised: Promises, traffic: Traffic, measured: Rates, count: int
) -> None:
    settled = PEAKS * measured.start_s + 4 * TICK_S
    found = after(lambda now: traffic, settled + 300, Scale(count), rates=measured, promises=promised, bounds=limits)
    assert moves(found[int(settled / TICK_S) :]) == 0


@given(promises, rates, st.integers(1, 1000))
def test_a_load_that_trembles_costs_no_cold_start(promised: Promises, measured: Rates, seed: int) -> None:
    def trembling(now: float) -> Traffic:
        part = (int(now / TICK_S) * 7 + seed) % 10 / 10  # the same again every ten ticks
        return dataclasses.replace(TRAFFIC, requests_per_s=100 * (1 - part / 2), running=int(100 * part))

    measured = dataclasses.replace(measured, start_s=max(measured.start_s, 15.0))
    highest = dataclasses.replace(TRAFFIC, requests_per_s=100, running=100)
    start = scale((1, 1000), promised, highest, measured, Scale(1), 0.0)
    found = [one.count for one in [start, *after(trembling, 1000, start, rates=measured, promises=promised)]]
    assert found == sorted(found, reverse=True)


def test_the_count_rises_at_once_and_falls_after_a_few_cold_starts() -> None:
    def load(now: float) -> Traffic:
        return busy(200 if 400 <= now < 500 else 20)

    found = after(load, 1000, Scale(2))
    few, many = found[79].count, found[99].count
    assert found[80].count > few and many > few
    fell = next(tick for tick in range(100, 200) if found[tick].count < many)
    assert PEAKS * RATES.start_s <= fell * TICK_S - 495 <= PEAKS * RATES.start_s + TICK_S
    assert found[-1].count == few and "no more were needed for 360 s" in found[fell].why


def test_a_dip_that_is_shorter_than_a_few_cold_starts_costs_none() -> None:
    def load(now: float) -> Traffic:
        return busy(20 if 100 <= now < 300 else 200)

    found = after(load, 600, Scale(2))
    assert moves(found[18:]) == 0


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 150)), min_size=1, max_size=8))
def test_what_idling_and_starting_cost_is_bounded_by_what_knowing_the_future_would(
    bursts: list[tuple[int, int]],
) -> None:
    on = [True] + [one for ticks, idle in bursts for one in (*[True] * ticks, *[False] * idle)] + [True]

    def load(now: float) -> Traffic:
        return busy(5.0 if on[int(now / TICK_S)] else 0.0)

    found = [one.count for one in after(load, len(on) * TICK_S, Scale(0), bounds=(0, 1))]
    idled = sum(count for count, one in zip(found, on, strict=True) if not one) * TICK_S
    starts = sum(was < now for was, now in itertools.pairwise(found))
    best = sum(min(idle * TICK_S, RATES.start_s) for _, idle in bursts)
    assert idled + starts * RATES.start_s <= (PEAKS + 1) * best
    assert all(count == 1 for count, one in zip(found, on, strict=True) if one)


@given(promises, traffics, rates)
def test_all_that_is_under_way_has_its_place_in_time(promised: Promises, traffic: Traffic, measured: Rates) -> None:
    traffic = dataclasses.replace(traffic, waiting=min(traffic.waiting, traffic.running))
    places = slots(promised, traffic, measured)
    service_s, first_s = measured.service_s(traffic, places), measured.first_s(traffic, places)
    spare_s = promised.first_token_s - first_s
    within_s = max(measured.start_s, service_s)
    may_wait_s = min(promised.queue_s, spare_s if spare_s > 0 else math.inf, within_s)
    found = math.ceil(demand(promised, traffic, measured)) * places
    come = traffic.running + traffic.waiting + may_wait_s * traffic.requests_per_s
    fresh = may_wait_s * traffic.requests_per_s * (1 - 1 / BUSIEST)  # of what comes, there is a little more room
    assert (come - fresh) * service_s <= found * (service_s + may_wait_s) * (1 + 1e-9) + 1e-6


def test_what_waits_is_answered_within_a_cold_start_of_the_new_replicas() -> None:
    queue = dataclasses.replace(TRAFFIC, waiting=3000, running=128)
    count = scale((1, 1000), PROMISES, queue, RATES, Scale(2), 0.0).count
    places = slots(PROMISES, queue, RATES)
    answered = count * places / RATES.service_s(queue, places)
    assert (answered - queue.requests_per_s) * RATES.start_s >= queue.waiting


def test_places_keep_the_promises_and_one_more_would_not() -> None:
    tight = Promises(first_token_s=math.inf, token_s=0.025)
    places = slots(tight, TRAFFIC, RATES)
    assert 1 < places < RATES.most
    assert RATES.service_s(TRAFFIC, places) / TRAFFIC.answer <= 0.025
    assert RATES.service_s(TRAFFIC, places + 1) / TRAFFIC.answer > 0.025
    early = Promises(first_token_s=0.065)
    assert RATES.first_s(TRAFFIC, slots(early, TRAFFIC, RATES)) <= 0.065
    assert slots(early, TRAFFIC, RATES) < RATES.most


def test_a_promise_that_nothing_keeps_does_not_take_the_cluster() -> None:
    impossible = Promises(first_token_s=1e-6, token_s=1e-6)
    assert scale((1, 1000), impossible, TRAFFIC, RATES, Scale(1), 0.0).count < 10


def test_no_load_needs_none_and_a_first_request_one() -> None:
    idle = dataclasses.replace(TRAFFIC, requests_per_s=0.0)
    assert after(lambda now: idle, 400, Scale(3), bounds=(0, 8))[-1].count == 0
    assert scale((0, 8), PROMISES, dataclasses.replace(idle, waiting=1), RATES, Scale(0), 0.0).count == 1


def test_what_is_not_allowed_is_said() -> None:
    why = scale((1, 2), PROMISES, busy(500), RATES, Scale(1), 0.0).why
    assert why.startswith("grows from 1 to 2 replicas: 500 requests/s;") and "2 are allowed" in why


def test_the_past_that_is_kept_is_short() -> None:
    found = after(lambda now: busy((now * 37) % 500), 3000, Scale(1))
    assert max(len(one.recent) for one in found) <= PEAKS * RATES.start_s / TICK_S + 1
