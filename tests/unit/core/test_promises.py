"""Estimates of starts come to be kept nine times of ten, whatever the workload does."""

from __future__ import annotations

import numpy as np
import pytest

from llmos.core.promises import Promises


@pytest.mark.parametrize("typical_s", [1.0, 100.0, 20_000.0])
def test_nine_of_ten_are_kept_in_the_end(typical_s: float) -> None:
    rng, promises, now = np.random.default_rng(0), Promises(), 0.0
    kept = []
    for i in range(4000):
        now += 1e6  # each has begun before the next is told
        waits_s = float(rng.lognormal(np.log(typical_s), 1.0))
        at = now + 100.0 * promises.caution
        promises.tell(f"j{i}", at)
        promises.pass_to(now + waits_s)
        promises.began(f"j{i}")
        kept.append(now + waits_s <= at)
    assert np.mean(kept[1000:]) == pytest.approx(0.9, abs=0.02)
    assert promises.kept + promises.broken == len(kept) and promises.kept == sum(kept)


def test_the_first_word_counts_and_is_judged_once() -> None:
    promises = Promises()
    promises.tell("a", 10.0)
    promises.tell("a", 99.0)
    promises.pass_to(10.0)
    assert (promises.kept, promises.broken) == (0, 0)
    promises.pass_to(11.0)
    promises.pass_to(50.0)
    promises.began("a")
    promises.began("unheard of")
    assert (promises.kept, promises.broken) == (0, 1) and promises.caution > 1


def test_who_will_not_start_counts_neither_way() -> None:
    promises = Promises()
    promises.tell("a", 10.0)
    promises.forget("a")
    promises.forget("unheard of")
    promises.pass_to(11.0)
    promises.began("a")
    assert (promises.kept, promises.broken, promises.caution) == (0, 0, 1.0)
