"""The choice of tokens for a batch: what may be chosen, how often, and on what it depends."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmos.errors import EngineError
from llmos.infer.drawing import MANY, draw, draw_sorted
from llmos.infer.request import SamplingParams
from llmos.infer.sampling import Sampled, Sampler

P = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
LOGITS = P.log()
DRAWS = 2000
GREEDY = {"temperature": 0.0}

FILTERS: list[dict[str, Any]] = [
    {},
    {"top_k": 2},
    {"top_k": 99},
    {"top_p": 0.69},
    {"top_p": 0.71},
    {"top_p": 1e-9},
    {"top_k": 3, "top_p": 0.5},
    {"min_p": 0.3},
    {"temperature": 0.5, "min_p": 0.2},
]
KEPT = [[0, 1, 2, 3, 4], [0, 1], [0, 1, 2, 3, 4], [0, 1], [0, 1, 2], [0], [0, 1], [0, 1, 2], [0, 1]]


def sampler(*params: SamplingParams, prompt: Sequence[int] = (), ends: Sequence[int] = ()) -> Sampler:
    """A sampler with the requests "0", "1", …, whose seeds are their numbers."""
    made = Sampler()
    for number, one in enumerate(params):
        made.add(str(number), one, number, prompt, frozenset(ends))
    return made


def tokens(found: Sampled | EngineError) -> tuple[int, ...]:
    assert isinstance(found, Sampled)
    return found.tokens


def sample(one: Sampler, ids: Sequence[str], logits_LV: Tensor) -> list[Sampled | EngineError]:
    """A token for each of ``ids``."""
    return one.verify([(id, ()) for id in ids], logits_LV)


def answer(
    logits_V: Tensor, count: int, prompt: Sequence[int] = (), ends: Sequence[int] = (), **params: Any
) -> list[int]:
    """What request "0" gets in ``count`` steps with the same logits."""
    one = sampler(SamplingParams(**params), prompt=prompt, ends=ends)
    return [tokens(sample(one, ["0"], logits_V[None].clone())[0])[0] for _ in range(count)]


def drawn(logits_V: Tensor = LOGITS, **params: Any) -> Counter[int]:
    """The first tokens of DRAWS requests, each with a seed of its own."""
    one = sampler(*[SamplingParams(**params)] * DRAWS)
    found = sample(one, [str(n) for n in range(DRAWS)], logits_V.repeat(DRAWS, 1))
    return Counter(tokens(row)[0] for row in found)


def likely(counts: Counter[int], p: Sequence[float], draws: int) -> bool:
    """Whether the chi-square statistic is one that comes 999 times in 1,000 (Wilson and Hilferty's approximation)."""
    possible = [token for token, one in enumerate(p) if one > 0]
    assert set(counts) <= set(possible)
    freedom = len(possible) - 1
    if not freedom:
        return True
    statistic = sum((counts[t] - draws * p[t]) ** 2 / (draws * p[t]) for t in possible)
    return statistic < freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize(("params", "kept"), list(zip(FILTERS, KEPT, strict=True)), ids=str)
def test_tokens_come_as_often_as_their_probability_says(params: dict[str, Any], kept: list[int]) -> None:
    expected = np.zeros(len(P))
    expected[kept] = P.numpy()[kept] ** (1 / params.get("temperature", 1.0))
    counts = drawn(**params)
    assert likely(counts, (expected / expected.sum()).tolist(), DRAWS)


def test_so_do_the_tokens_of_one_answer() -> None:
    assert likely(Counter(answer(LOGITS, 1000)), P.tolist(), 1000)


def test_the_test_of_frequencies_sees_a_small_difference() -> None:
    counts = drawn()
    assert not likely(counts, [0.34, 0.36, 0.15, 0.1, 0.05], DRAWS)


def test_temperature_0_takes_the_likeliest_and_the_first_of_equals() -> None:
    assert answer(LOGITS, 3, **GREEDY) == [0, 0, 0]
    assert answer(torch.tensor([1.0, 2.0, 2.0, 0.0]), 3, **GREEDY) == [1, 1, 1]


def test_an_answer_depends_on_its_seed_and_on_nobody_beside_it() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_LV = torch.randn(4, 1000, generator=generator)
    others = (SamplingParams(top_p=0.9), SamplingParams(**GREEDY, logit_bias=((3, 9.0),)), SamplingParams(top_k=5))
    params = SamplingParams(temperature=1.5)
    alone, together = sampler(params), sampler(params, *others)
    together.add("again", params, 0, (), frozenset())
    for _ in range(70):  # more than one block of random numbers
        rows = sample(together, ["2", "0", "1", "3", "again"], logits_LV[[1, 0, 2, 3, 0]])
        assert rows[1] == sample(alone, ["0"], logits_LV[:1].clone())[0] == rows[4]
    assert answer(logits_LV[0], 20, temperature=1.5) != answer(logits_LV[1], 20, temperature=1.5)


def test_seeds_that_differ_in_any_half_choose_differently() -> None:
    seeds, one = (0, 1, 2, 1 << 64, 2 << 64), Sampler()
    for seed in seeds:
        one.add(str(seed), SamplingParams(), seed, (), frozenset())
    found = sample(one, [str(seed) for seed in seeds], torch.zeros(len(seeds), 10**5))
    assert len({tokens(row) for row in found}) == len(seeds)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 7, 64, 200, 3 * MANY]),
    st.floats(0.1, 9),
    st.sampled_from([0, 1, 3, 50, 5000]),
    st.sampled_from([0.0, 1e-9, 0.3, 0.95, 1 - 1e-7, 1.0]),
    st.sampled_from([0.0, 0.01, 1.0]),
)
def test_sorting_all_rows_at_once_draws_the_same(
    seed: int, size: int, spread: float, top_k: int, top_p: float, min_p: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_LV = torch.randn(3, size, generator=generator) * spread
    params = [SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p), SamplingParams(), SamplingParams(min_p=0.1)]
    uniforms = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    one_by_one = draw(logits_LV.clone(), params, uniforms)
    assert one_by_one == draw_sorted(logits_LV.softmax(-1), params, uniforms)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("params", FILTERS, ids=str)
def test_the_ends_of_chance_are_tokens_that_may_come(params: dict[str, Any], uniform: float) -> None:
    logits_LV = torch.full((1, 300), -math.inf)
    logits_LV[0, 70:75] = LOGITS
    found = draw(logits_LV.clone(), [SamplingParams(**params)], [uniform])
    assert found == [70] if uniform == 0 else 70 <= found[0] < 75
    assert found == draw_sorted(
        logits_LV.mul(1 / params.get("temperature", 1)).softmax(-1), [SamplingParams(**params)], [uniform]
    )


def test_penalties_make_tokens_less_likely_that_were_there() -> None:
    logits_V = torch.tensor([2.0, 1.0, -1.0, 0.625])
    assert answer(logits_V, 3, (0, 2), **GREEDY, repetition_penalty=4.0) == [1, 3, 0]
    assert answer(logits_V, 4, (0,), **GREEDY, presence_penalty=1.2) == [0, 1, 0, 0]
    assert answer(logits_V, 4, (0,), **GREEDY, frequency_penalty=0.6) == [0, 0, 1, 0]
    many = torch.arange(300.0).flip(0) / 1000
    assert answer(many, 300, **GREEDY, presence_penalty=2.0) == list(range(300))


def test_biases_are_added_to_logits() -> None:
    assert answer(LOGITS, 2, **GREEDY, logit_bias=((4, 5.0), (0, 1.0))) == [4, 4]
    counts = drawn(logit_bias=((0, -100.0), (1, math.log(2))))
    assert likely(counts, [0, 0.6 / 0.9, 0.15 / 0.9, 0.1 / 0.9, 0.05 / 0.9], DRAWS)


def test_no_end_comes_before_min_tokens() -> None:
    assert answer(LOGITS, 4, ends=(0, 1), **GREEDY, min_tokens=2) == [2, 2, 0, 0]
    assert answer(LOGITS, 2, ends=(0,), **GREEDY) == [0, 0]


def test_the_ends_are_those_of_the_model_and_of_the_request() -> None:
    model = frozenset({1, 2})
    assert SamplingParams(stop_token_ids=frozenset({7})).ends(model) == {1, 2, 7}
    assert SamplingParams(stop_token_ids=frozenset({7}), ignore_eos=True).ends(model) == {7}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_only_the_row_fails_whose_logits_are_not_numbers(bad: float) -> None:
    logits_LV = LOGITS.repeat(3, 1)
    logits_LV[1, 3] = bad
    greedy = SamplingParams(**GREEDY, logprobs=1)
    found = sample(sampler(greedy, greedy, SamplingParams()), ["0", "1", "2"], logits_LV)
    assert isinstance(found[0], Sampled) and isinstance(found[2], Sampled)
    with pytest.raises(EngineError, match="not numbers"):
        raise found[1] if isinstance(found[1], EngineError) else AssertionError


def test_a_row_that_may_choose_nothing_says_so() -> None:
    found = sample(sampler(SamplingParams(min_tokens=1), ends=range(5)), ["0"], LOGITS[None].clone())
    assert isinstance(found[0], EngineError) and "min_tokens" in found[0].message


def test_penalties_that_leave_the_range_of_numbers_end_their_request_alone() -> None:
    """At any temperature, with any filter."""
    for more in ({}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}, GREEDY):
        one = sampler(SamplingParams(repetition_penalty=0.01, **more), SamplingParams(), prompt=(0, 1))
        huge = torch.tensor([2e37, 1.0, 0.5, 0.0, -1.0])
        found = sample(one, ["0", "1"], torch.stack([huge, LOGITS]))
        assert isinstance(found[0], EngineError) and "penalties" in found[0].message
        assert isinstance(found[1], Sampled)


@pytest.mark.parametrize("filters", FILTERS[:-1], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_that_the_temperature_would_drive_out_of_range_leave_the_likeliest(
    filters: dict[str, Any], sign: int
) -> None:
    logits_LV = torch.stack([sign * torch.tensor([2.0, 1.0, 3.0]) * 1e35, torch.tensor([0.0, 9.0, 0.0])])
    found = sample(sampler(*[SamplingParams(**filters, temperature=1e-4)] * 2), ["0", "1"], logits_LV)
    assert [tokens(one) for one in found] == [(2 if sign > 0 else 1,), (1,)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_draft_models_logits_may_be_anything(bad: float) -> None:
    """The model then says something else."""
    one = sampler(SamplingParams(), SamplingParams(top_k=2), SamplingParams(top_p=0.5))
    logits_LV = torch.full((3, 5), bad)
    assert all(0 <= token < 5 for token in one.guess(["0", "1", "2"], 1, logits_LV))


def test_logprobs_are_of_the_model_not_of_the_choice() -> None:
    params = SamplingParams(**GREEDY, logprobs=2, logit_bias=((3, 50.0),))
    none, zero, all_of_them = (
        SamplingParams(**GREEDY),
        SamplingParams(logprobs=0, **GREEDY),
        SamplingParams(logprobs=20),
    )
    rows = sample(sampler(params, none, zero, all_of_them), ["0", "1", "2", "3"], (LOGITS + 7).repeat(4, 1))
    logprobs = [row.logprobs for row in rows if isinstance(row, Sampled)]
    assert (len(logprobs), logprobs[1]) == (4, ())
    found = logprobs[0][0]
    assert (found.token, [token for token, _ in found.top]) == (3, [0, 1])
    assert math.exp(found.logprob) == pytest.approx(0.1, rel=1e-5)
    assert [math.exp(value) for _, value in found.top] == pytest.approx([0.4, 0.3], rel=1e-5)
    assert logprobs[2][0].top == () and len(logprobs[3][0].top) == 5


ACCEPTED: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    (GREEDY, (0, 0, 1)),
    ({}, (0, 1)),
    ({"presence_penalty": 1.5, "repetition_penalty": 1.2}, (0, 1, 2, 0)),
    ({**GREEDY, "presence_penalty": 2.0}, (0, 1, 2, 3)),
    ({**GREEDY, "min_tokens": 3}, (1, 1, 1, 0)),
    ({"logprobs": 3, "top_p": 0.8}, (0, 0)),
]


@pytest.mark.parametrize(("params", "drafts"), ACCEPTED, ids=str)
def test_drafts_change_no_answer(params: dict[str, Any], drafts: tuple[int, ...]) -> None:
    """A request with any drafts gets, token by token, what it gets without."""
    params = {"ends": (0,), "prompt": (3,), **params}
    plain = answer(LOGITS, 150, **params)
    setting = {name: params.pop(name) for name in ("ends", "prompt")}
    one = sampler(SamplingParams(**params), **setting)
    found: list[int] = []
    while len(found) < 140:
        got = one.verify([("0", drafts)], LOGITS.repeat(1 + len(drafts), 1))[0]
        assert got.tokens[:-1] == drafts[: len(got.tokens) - 1] if isinstance(got, Sampled) else False
        assert len(got.logprobs) == (len(got.tokens) if "logprobs" in params else 0)
        found += got.tokens
    assert found == plain[: len(found)]


def test_with_drafts_tokens_come_as_often_as_without() -> None:
    """The distribution of the two tokens after a draft, over seeds (Leviathan et al., arXiv 2211.17192, theorem 1)."""
    firsts: Counter[int] = Counter()
    seconds: Counter[int] = Counter()
    logits_LV = torch.stack([LOGITS, LOGITS.flip(0)]).repeat(DRAWS, 1)
    asked = [(str(seed), (1,)) for seed in range(DRAWS)]
    for row in sampler(*[SamplingParams()] * DRAWS).verify(asked, logits_LV):
        got = tokens(row)
        firsts[got[0]] += 1
        if len(got) == 2:
            seconds[got[1]] += 1
    assert likely(firsts, P.tolist(), DRAWS)
    assert seconds.total() == firsts[1] and likely(seconds, P.flip(0).tolist(), seconds.total())


def test_rows_of_several_requests_are_verified_together() -> None:
    greedy = SamplingParams(**GREEDY)
    bad_LV = LOGITS.repeat(6, 1)
    bad_LV[5] = math.nan  # after a draft that is not right: nobody looks at it
    found = sampler(greedy, greedy, greedy).verify(
        [("0", (0, 2, 0)), ("1", ()), ("2", (4,))], bad_LV[[0, 1, 2, 3, 4, 4, 5]]
    )
    assert [tokens(row) for row in found] == [(0, 0), (0,), (0,)]


def test_guesses_are_drawn_with_the_numbers_of_their_places() -> None:
    one = sampler(SamplingParams(), SamplingParams(**GREEDY))
    guessed = [one.guess(["0", "1"], ahead, LOGITS.repeat(2, 1)) for ahead in range(5)]
    assert [row[0] for row in guessed] == answer(LOGITS, 5) and {row[1] for row in guessed} == {0}
    assert len(tokens(one.verify([("0", tuple(row[0] for row in guessed))], LOGITS.repeat(6, 1))[0])) == 6
