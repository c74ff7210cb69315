"""The cost model of sums: what fits what was measured, and what is slow."""

from __future__ import annotations

import pytest

from llmos.parallel.network import SIZES, Link, Network, Sum, fit, measure_here, moved, numbers, of_numbers


def sums(ranks: int, latency_s: float, bandwidth: float) -> list[Sum]:
    return [Sum(size, latency_s + 2 * (ranks - 1) / ranks * size / bandwidth) for size in SIZES]


@pytest.mark.parametrize(("ranks", "latency_s", "bandwidth"), [(2, 1e-4, 2e9), (8, 3e-5, 4e11), (4, 0.0, 1e9)])
def test_the_fit_finds_what_made_the_times(ranks: int, latency_s: float, bandwidth: float) -> None:
    found = Network.of(ranks, "gloo", sums(ranks, latency_s, bandwidth), [])
    assert (found.latency_s, found.bandwidth) == pytest.approx((latency_s, bandwidth), abs=1e-9, rel=1e-6)
    for one in found.sums:
        assert found.predicted_s(one.size_bytes) == pytest.approx(one.time_s, rel=1e-6)


def test_a_latency_is_never_negative() -> None:
    latency_s, bandwidth = fit(2, [Sum(1000, 1e-6), Sum(10**6, 2e-3)])  # the larger is more than in proportion
    assert latency_s == 0.0 and 4e8 < bandwidth < 1.1e9


def test_a_slow_link_is_named() -> None:
    links = [Link(0, 1, 10.0), Link(0, 2, 9.0), Link(0, 3, 4.0), Link(1, 2, 11.0), Link(1, 3, 10.0), Link(2, 3, 10.0)]
    found = Network.of(4, "nccl", sums(4, 1e-5, 1e9), links)
    assert found.slow == (Link(0, 3, 4.0),)
    assert of_numbers({"step": 1, "time_s": 2.0, **numbers(found)}) == found
    assert moved(4, 100) == 150 and moved(2, 100) == 100


@pytest.mark.timeout(240)
@pytest.mark.slow
def test_three_ranks_of_this_machine_are_measured() -> None:
    found = measure_here(3)
    assert (found.ranks, found.backend, len(found.sums), len(found.links)) == (3, "gloo", len(SIZES), 3)
    assert found.bandwidth > 0 and found.sums[-1].time_s > found.sums[0].time_s > 0
