"""Which requests are taken, and what is wrong with the others."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from llmos.errors import UsageError
from llmos.openai import errors
from llmos.openai.schema import ChatRequest, CompletionRequest

COMPLETION: dict[str, Any] = {"model": "m", "prompt": "x"}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def _problem(kind: type[CompletionRequest | ChatRequest], body: dict[str, Any]) -> UsageError:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    found = [{**one, "loc": ("body", *one["loc"])} for one in caught.value.errors()]
    return errors.invalid(RequestValidationError(found), kind.model_fields)


@pytest.mark.parametrize(
    "extra",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "safety_identifier": "s"},
        {"n": None, "temperature": None, "top_p": None, "stop": None, "seed": None, "stream_options": None},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"temperature": 1, "seed": -5, "stop": ["a", "b"], "frequency_penalty": 0, "logit_bias": {}},
        {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True},
    ],
    ids=lambda extra: ",".join(extra),
)
def test_what_clients_send_is_taken(extra: dict[str, Any]) -> None:
    CompletionRequest.model_validate({**COMPLETION, **extra})
    ChatRequest.model_validate({**CHAT, **extra})


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"store": True}, "store"),
        ({"n": 129}, "n"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"model": None}, "model"),
        ({"colour": "red"}, "colour"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_name(extra: dict[str, Any], param: str) -> None:
    for kind, body in ((CompletionRequest, COMPLETION), (ChatRequest, CHAT)):
        problem = _problem(kind, {**body, **extra})
        assert problem.param == param
        assert f"`{param}`" in problem.message


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": 6}, "logprobs"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["x"] * 9, "n": 16}, "prompt"),
    ],
    ids=str,
)
def test_completions_that_are_refused(extra: dict[str, Any], param: str) -> None:
    assert _problem(CompletionRequest, {**COMPLETION, **extra}).param == param


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]}, "messages[0].tool_calls"),
    ],
    ids=str,
)
def test_chats_that_are_refused(extra: dict[str, Any], param: str) -> None:
    assert _problem(ChatRequest, {**CHAT, **extra}).param == param


def test_harmless_values_of_unsupported_fields_are_taken() -> None:
    neutral = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"]}
    ChatRequest.model_validate({**CHAT, **neutral, "parallel_tool_calls": True, "logprobs": True, "top_logprobs": 0})
    CompletionRequest.model_validate({**COMPLETION, "suffix": "", "n": 2, "best_of": 2, "echo": False})


def test_misspelled_fields_get_a_suggestion() -> None:
    problem = _problem(CompletionRequest, {"model": "m", "promt": "x"})
    assert (problem.message, problem.hint) == ("`promt` is not a field of this request", "Did you mean `prompt`?")


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_prompts_have_four_forms(prompt: Any, prompts: list[Any]) -> None:
    assert CompletionRequest(model="m", prompt=prompt).prompts == prompts
