"""Requests and events are values that travel."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from llmos.errors import UsageError
from llmos.infer.request import GenerationRequest, Grammar, SamplingParams, TokenEvent, TokenLogprob


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-39),  # divided by which logits leave float32
        ("repetition_penalty", 101.0),
        ("frequency_penalty", 3.0),
        ("presence_penalty", -3.0),
        ("seed", -1),
        ("seed", 2**128),
        ("stop", ("",)),
        ("stop", ("x",) * 17),
        ("stop", ("x" * 257,)),
        ("logprobs", 21),
        ("logit_bias", ((1, 101.0),)),
        ("logit_bias", ((1, float("nan")),)),
        ("logit_bias", ((1, 1.0), (1, 2.0))),
        ("logit_bias", tuple((token, 1.0) for token in range(1025))),
        ("stop_token_ids", frozenset(range(129))),
        ("min_tokens", -1),
    ],
)
def test_parameters_that_cannot_be_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name


@pytest.mark.parametrize(("name", "value"), [("weight", 0.0), ("weight", float("nan")), ("deadline_s", 0.0)])
def test_requests_that_cannot_be_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        GenerationRequest("a", (1,), **{name: value})
    assert caught.value.param == name


def test_parameters_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="min_tokens"):
        SamplingParams(max_tokens=4, min_tokens=5)
    with pytest.raises(UsageError, match="grammar"):
        Grammar("regex", "x" * (256 * 1024 + 1))


@pytest.mark.parametrize(
    ("name", "value"),
    [("logit_bias", ((3, 1.0), (10, 1.0))), ("stop_token_ids", frozenset({10})), ("logit_bias", ((-1, 1.0),))],
)
def test_tokens_that_are_none_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match="expected 0 to 9") as caught:
        SamplingParams(**{name: value}).check_vocabulary(10)
    assert caught.value.param == name
    SamplingParams(logit_bias=((9, 1.0),), stop_token_ids=frozenset({0})).check_vocabulary(10)


def test_they_can_be_pickled() -> None:
    event = TokenEvent("a", (1, 2), "x", (TokenLogprob(1, -0.5, ((1, -0.5),)),), "stop", 3, 2)
    asked = GenerationRequest("a", (1, 2, 3), SamplingParams(stop=("x",), seed=2**100, grammar=Grammar("json_object")))
    assert pickle.loads(pickle.dumps((event, asked))) == (event, asked)


def test_events_join() -> None:
    first = TokenEvent("a", (1,), "x", (TokenLogprob(1, -1.0),), None, 3, 1)
    then = TokenEvent("a", (2,), "y", (TokenLogprob(2, -2.0),), "length", 3, 2)
    joined = TokenEvent("a", (1, 2), "xy", (TokenLogprob(1, -1.0), TokenLogprob(2, -2.0)), "length", 3, 2)
    assert first.then(then) == joined
