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
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}, "strict": True}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def _problem(kind: type[CompletionRequest | ChatRequest], body: dict[str, Any]) -> UsageError:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    found = [{**one, "loc": ("body", *one["loc"])} for one in caught.value.errors()]
    return errors.invalid(RequestValidationError(found), kind.model_fields)


@pytest.mark.parametrize(
    "extra",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "flex", "safety_identifier": "s"},
        {"moderation": {"model": "m"}, "prompt_cache_options": {"ttl": "30m"}, "prompt_cache_retention": "24h"},
        {"max_tokens": 0, "logit_bias": {"the": 0}},
        {"stream_options": {"include_usage": True}},
        {"n": None, "temperature": None, "top_p": None, "stop": None, "seed": None, "stream_options": None},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"temperature": 1, "seed": -5, "stop": ["a", "b"], "frequency_penalty": 0, "logit_bias": {}},
        {"logit_bias": {"5": -1, "17": 0.5}, "min_tokens": 3, "stop_token_ids": [4]},
        {"structured_outputs": {"regex": "a+"}},
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
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"the": 1}}, "logit_bias"),
        ({"logit_bias": {"05": 1}}, "logit_bias"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
        ({"n": 129}, "n"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"repetition_penalty": 1e-39}, "repetition_penalty"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"user": "u" * 257}, "user"),
        ({"service_tier": "first"}, "service_tier"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
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
        ({"store": True}, "store"),
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
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "required", "structured_outputs": {"regex": "a"}}, "tool_choice"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "response_format"),
        ({"functions": [{}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"store": 1}, "store"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format.json_schema"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]}, "messages[0].tool_calls[0]"),
    ],
    ids=str,
)
def test_chats_that_are_refused(extra: dict[str, Any], param: str) -> None:
    assert _problem(ChatRequest, {**CHAT, **extra}).param == param


def test_harmless_values_of_unsupported_fields_are_taken() -> None:
    neutral = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"]}
    ChatRequest.model_validate({**CHAT, **neutral, "parallel_tool_calls": True, "logprobs": True, "top_logprobs": 0})
    CompletionRequest.model_validate({**COMPLETION, "n": 2, "best_of": 2, "echo": False})
    CompletionRequest.model_validate({**COMPLETION, "best_of": 0, "echo": True, "logprobs": 0})


def test_what_is_without_effect_is_told() -> None:
    asked = {
        **{"verbosity": "low", "audio": {"voice": "x"}, "reasoning_effort": None, "service_tier": "priority"},
        **{"functions": [{"name": "f"}], "function_call": "none", "tools": [TOOL], "temperature": 0.5},
        "messages": [{"role": "user", "content": "x", "name": "me"}, {"role": "user", "content": "y"}],
    }
    found = ChatRequest.model_validate({**CHAT, **asked}).ignored()
    assert found == {"verbosity", "audio", "service_tier", "functions", "tools.function.strict", "messages.name"}
    assert ChatRequest.model_validate({**CHAT, "service_tier": "flex", "user": "u"}).ignored() == set()


def test_tiers_and_priorities_are_one_scale() -> None:
    for extra, level in (
        ({}, 0),
        ({"priority": -3}, -3),
        ({"service_tier": "flex"}, -1),
        ({"service_tier": "fast"}, 0),
    ):
        assert CompletionRequest.model_validate({**COMPLETION, **extra}).level == level
    assert CompletionRequest.model_validate({**COMPLETION, "service_tier": "flex", "priority": -5}).level == -5


def test_tools_are_offered_unless_they_must_not_be_called() -> None:
    other = {"type": "function", "function": {"name": "g"}}
    named = {"type": "function", "function": {"name": "g"}}
    for choice, offered, required in (
        (None, ["f", "g"], []),
        ("auto", ["f", "g"], []),
        ("none", [], []),
        ("required", ["f", "g"], ["f", "g"]),
        (named, ["f", "g"], ["g"]),
    ):
        request = ChatRequest.model_validate({**CHAT, "tools": [TOOL, other], "tool_choice": choice})
        assert [tool.function.name for tool in request.offered] == offered
        assert [tool.function.name for tool in request.required] == required
    ChatRequest.model_validate({**CHAT, "messages": [{"role": "assistant", "tool_calls": [CALL]}]})


def test_misspelled_fields_get_a_suggestion() -> None:
    problem = _problem(CompletionRequest, {"model": "m", "promt": "x"})
    assert (problem.message, problem.hint) == ("`promt` is not a field of this request", "Did you mean `prompt`?")


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_prompts_have_four_forms(prompt: Any, prompts: list[Any]) -> None:
    assert CompletionRequest(model="m", prompt=prompt).prompts == prompts
