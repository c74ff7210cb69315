"""Answers of a given form, biases and early ends: from the client's request to what the model may say."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import openai
import pytest

from tests.unit.openai.conftest import Served

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["colour", "n"],
    "additionalProperties": False,
}
CHAT: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "Walk?"}], "max_tokens": 180}
COMPLETION: dict[str, Any] = {"model": "small", "prompt": "def", "max_tokens": 150}


def test_a_response_format_is_obeyed(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    found = client.chat.completions.create(**CHAT, response_format=form, n=4, seed=1)
    texts = [choice.message.content or "" for choice in found.choices]
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(set(texts)) > 1 and {choice.finish_reason for choice in found.choices} == {"stop"}
    streamed = client.chat.completions.create(**CHAT, response_format=form, seed=1, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == texts[0]
    anything = client.chat.completions.create(**CHAT, response_format={"type": "json_object"}, seed=1)
    assert (anything.choices[0].message.content or "").startswith("{")


@pytest.mark.parametrize(
    ("outputs", "pattern"),
    [
        ({"choice": ["Größe", "yes"]}, "Größe|yes"),
        ({"regex": "[a-c]{3}[0-9]"}, "[a-c]{3}[0-9]"),
        ({"json": SCHEMA}, r"\{.*\}"),
        ({"json": json.dumps(SCHEMA)}, r"\{.*\}"),
        ({"grammar": 'start: "x" | "y"'}, "x|y"),
    ],
    ids=str,
)
def test_so_are_structured_outputs(client: openai.OpenAI, outputs: dict[str, Any], pattern: str) -> None:
    extra = {"structured_outputs": outputs}
    completion = client.completions.create(**COMPLETION, seed=3, extra_body=extra)
    chat = client.chat.completions.create(**CHAT, seed=3, extra_body=extra)
    for text in (completion.choices[0].text, chat.choices[0].message.content or ""):
        assert re.fullmatch(pattern, text, re.DOTALL)


def test_biases_stop_tokens_and_least_lengths_reach_the_engine(served: Served, client: openai.OpenAI) -> None:
    tokenizer = served.engine.tokenizer
    (x,) = tokenizer.encode("x")
    only = client.completions.create(**{**COMPLETION, "max_tokens": 3}, logit_bias={str(x): 100}, temperature=0)
    assert only.choices[0].text == "xxx"
    extra: dict[str, Any] = {"stop_token_ids": [x]}
    ended = client.completions.create(**COMPLETION, logit_bias={str(x): 100}, temperature=0, extra_body=extra)
    assert (ended.choices[0].text, ended.choices[0].finish_reason) == ("", "stop")
    later = client.completions.create(
        **COMPLETION, logit_bias={str(x): 100}, temperature=0, extra_body={**extra, "min_tokens": 5}
    )
    assert later.usage is not None and later.usage.completion_tokens == 6
    assert later.choices[0].finish_reason == "stop" and "x" not in later.choices[0].text


@pytest.mark.parametrize(
    ("extra", "param", "message"),
    [
        ({"logit_bias": {"99999": 1.0}}, "logit_bias", "token 99999"),
        ({"stop_token_ids": [99999]}, "stop_token_ids", "token 99999"),
        ({"min_tokens": 190}, "min_tokens", "0 to `max_tokens`"),
        ({"structured_outputs": {"regex": "a("}}, "structured_outputs", "unclosed group"),
        ({"structured_outputs": {"choice": ["a"]}, "min_tokens": 2}, "min_tokens", "grammar"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"properties": {"a": {"type": 3}}}}}},
            "response_format",
            r"\$.properties.a",
        ),
    ],
    ids=str,
)
def test_what_the_engine_refuses_names_the_field(
    client: openai.OpenAI, extra: dict[str, Any], param: str, message: str
) -> None:
    for streamed in (False, True):
        with pytest.raises(openai.BadRequestError, match=message) as caught:
            client.chat.completions.create(**CHAT, stream=streamed, extra_body=extra)
        assert caught.value.param == param
