"""The choice of a token: what may be chosen, how often, and on what it depends."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.errors import EngineError
from llmos.infer import sampler
from llmos.infer.request import SamplingParams
from llmos.infer.sampler import Floats, Sampler

P = np.array([0.4, 0.3, 0.15, 0.1, 0.05], dtype=np.float32)
LOGITS = np.log(P)
DRAWS = 4000


def _drawn(logits: Floats = LOGITS, seed: int = 1, draws: int = DRAWS, **params: Any) -> Counter[int]:
    one = Sampler(SamplingParams(**params), seed, ())
    return Counter(one.choose(logits) for _ in range(draws))


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.69}, [0, 1]),
        ({"top_p": 0.71}, [0, 1, 2]),
        ({"top_p": 1e-9}, [0]),
        ({"top_k": 3, "top_p": 0.5}, [0, 1]),
        ({"min_p": 0.3}, [0, 1, 2]),
        ({"temperature": 0.5, "min_p": 0.2}, [0, 1]),
    ],
    ids=str,
)
def test_tokens_come_as_often_as_their_probability_says(params: dict[str, Any], kept: list[int]) -> None:
    expected = np.zeros(len(P))
    expected[kept] = P[kept] ** (1 / params.get("temperature", 1.0))
    expected /= expected.sum()
    counts = _drawn(**params)
    for token, p in enumerate(expected):
        deviation = math.sqrt(DRAWS * p * (1 - p))
        assert abs(counts[token] - DRAWS * p) <= 4 * deviation


def test_temperature_0_takes_the_likeliest_and_the_first_of_equals() -> None:
    assert _drawn(temperature=0, draws=3) == {0: 3}
    assert _drawn(np.array([1, 2, 2, 0], dtype=np.float32), temperature=0, draws=3) == {1: 3}


@given(st.integers(0, 2**128 - 1))
def test_the_same_seed_makes_the_same_choices(seed: int) -> None:
    logits = np.zeros(1000, dtype=np.float32)
    assert _drawn(logits, seed, 8) == _drawn(logits, seed, 8)


def test_seeds_that_differ_in_any_half_choose_differently() -> None:
    logits = np.zeros(10**6, dtype=np.float32)
    firsts = [next(iter(_drawn(logits, seed, 1))) for seed in (0, 1, 2, 1 << 64, 2 << 64)]
    assert len(set(firsts)) == 5


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40), st.integers(0, 9), st.floats(0.01, 1))
def test_a_choice_is_always_a_token_that_is_not_ruled_out(values: list[float], top_k: int, top_p: float) -> None:
    logits = np.array([*values, -np.inf], dtype=np.float32)
    assert max(_drawn(logits, top_k=top_k, top_p=top_p, temperature=0.1, draws=5)) < len(values)


def test_penalties_make_tokens_less_likely_that_were_there() -> None:
    logits = np.array([2.0, 1.0, -1.0, 0.625], dtype=np.float32)
    greedy = {"temperature": 0.0}
    repetition = Sampler(SamplingParams(repetition_penalty=4.0, **greedy), 0, (0, 2))
    assert [repetition.choose(logits) for _ in range(3)] == [1, 3, 0]
    presence = Sampler(SamplingParams(presence_penalty=1.2, **greedy), 0, (0,))
    assert [presence.choose(logits) for _ in range(4)] == [0, 1, 0, 0]
    frequency = Sampler(SamplingParams(frequency_penalty=0.6, **greedy), 0, (0,))
    assert [frequency.choose(logits) for _ in range(4)] == [0, 0, 1, 0]
    assert logits.tolist() == [2.0, 1.0, -1.0, 0.625]


def test_logprobs_are_of_the_model_not_of_the_choice() -> None:
    found = sampler.logprob(LOGITS + 7, 3, 2)
    assert found.token == 3
    assert math.exp(found.logprob) == pytest.approx(0.1, rel=1e-5)
    assert [token for token, _ in found.top] == [0, 1]
    assert [math.exp(value) for _, value in found.top] == pytest.approx([0.4, 0.3], rel=1e-5)
    assert sampler.logprob(LOGITS, 0, 0).top == ()
    assert len(sampler.logprob(LOGITS, 0, 20).top) == 5  # all there are


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_refused(bad: float) -> None:
    with pytest.raises(EngineError, match="not numbers"):
        sampler.checked(np.array([0, bad], dtype=np.float32))
