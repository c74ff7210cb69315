"""Tools: what the model is told of them, the calls it must or may make, and how they reach the client."""

from __future__ import annotations

import asyncio
import itertools
import json
from functools import reduce
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.errors import UsageError
from llmos.models import Tokenizer
from llmos.openai.caller import Caller
from llmos.openai.schema import ChatRequest
from llmos.openai.tools import MAX_CALLS, Tool, ToolCall, ToolParser, calls
from llmos.serving import EngineBackend
from tests.unit.openai.conftest import Served

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How it is outside.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
            "$defs": {"city": {"enum": ["Ulm", "Bonn"]}},
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TAGGED = (
    "{% for tool in tools or [] %}{{ tool.function.name }}: <tool_call></tool_call> {% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.name }}:{{ call.function.arguments.n }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BARE = TAGGED.replace("<tool_call></tool_call>", '{"name", "parameters"}')
HI = [{"role": "user", "content": "How is it?"}]

TEXTS = [
    ("no calls", "no calls", []),
    ('<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>', "", [("f", '{"a": "é"}')]),
    (
        'Well.\n<tool_call>{"name": "f", "parameters": {}}</tool_call>\n<tool_call>{"name": "g"}</tool_call>\n',
        "Well.",
        [("f", "{}"), ("g", "{}")],
    ),
    ("<tool_call>not JSON</tool_call> and on", "<tool_call>not JSON</tool_call> and on", []),
    ('<tool_call>{"name": "f", "arguments": {}}', "", [("f", "{}")]),  # the end came too early to be tagged
    ('<tool_call>{"name": "f", "argu', '<tool_call>{"name": "f", "argu', []),
    ("a <tool_ca", "a <tool_ca", []),
    ("<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", []),
    (" \n", " \n", []),
]


@pytest.mark.parametrize(("text", "shown", "found"), TEXTS)
@given(st.lists(st.integers(0, 90), max_size=8))
def test_calls_are_found_however_the_text_is_cut(
    text: str, shown: str, found: list[tuple[str, str]], cuts: list[int]
) -> None:
    parser = ToolParser(tagged=True)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [parser.push(text[a:b]) for a, b in itertools.pairwise(places)] + [parser.finish()]
    assert "".join(piece[0] for piece in pieces) == shown
    assert [(call.name, call.arguments) for piece in pieces for call in piece[1]] == found
    assert parser.found == len(found)


def test_text_is_passed_on_as_soon_as_it_can_be_no_call() -> None:
    parser = ToolParser(tagged=True)
    assert [parser.push(piece)[0] for piece in ("Hi", " <", "b> <to", "ol_c", "ool>", "<tool_call>")] == [
        *("Hi", "", " <b>", "", " <tool_cool>", "")
    ]


def test_bare_calls_are_the_whole_text() -> None:
    parser = ToolParser(tagged=False)
    assert parser.push('{"name": "f", ') == parser.push('"parameters": {"a": 1}}') == ("", [])
    assert [(call.name, call.arguments) for call in parser.finish()[1]] == [("f", '{"a": 1}')]
    other = ToolParser(tagged=False)
    other.push("{} x")
    assert other.finish() == ("{} x", [])


def test_the_grammar_of_calls_is_bounded() -> None:
    tools = [Tool.model_validate(CLOCK)]
    several, one = (calls(tools, tagged=True, parallel=parallel, arguments="x").text for parallel in (True, False))
    assert f"{{0,{MAX_CALLS - 1}}}" in several and "{0," not in one


def _backend(served: Served, directory: Path, template: str) -> EngineBackend:
    served.engine.tokenizer.save(directory)
    (directory / "chat_template.jinja").write_text(template)
    return EngineBackend(served.engine, Tokenizer.load(directory), "small")


def _ask(backend: EngineBackend, **extra: Any) -> list[dict[str, Any]]:
    """The documents that are the answer."""
    request = ChatRequest.model_validate(
        {**{"model": "small", "messages": HI, "max_tokens": 180, "seed": 5, "tools": [WEATHER, CLOCK]}, **extra}
    )

    async def collect() -> bytes:
        return b"".join([piece async for piece in backend.answer(request, Caller(""))])

    text = asyncio.run(collect()).decode()
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize("template", [TAGGED, BARE], ids=["tagged", "bare"])
def test_a_required_call_is_made_and_valid(served: Served, tmp_path: Path, template: str) -> None:
    backend = _backend(served, tmp_path, template)
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        extra = {"tool_choice": choice, "parallel_tool_calls": False}
        (answer,) = (one["choices"][0] for one in _ask(backend, **extra))
        message = answer["message"]
        assert (answer["finish_reason"], message["content"], len(message["tool_calls"])) == ("tool_calls", None, 1)
        call = message["tool_calls"][0]
        assert call["type"] == "function" and call["id"].startswith("call_")
        name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
        assert name == "weather" if choice == named else name in ("weather", "clock")
        jsonschema.validate(arguments, WEATHER["function"]["parameters"] if name == "weather" else {"maxProperties": 0})
        streamed = [one["choices"][0] for one in _ask(backend, **extra, stream=True)]
        deltas = [delta for one in streamed for delta in one["delta"].get("tool_calls", ())]
        assert [(delta["index"], delta["function"]) for delta in deltas] == [(0, call["function"])]
        assert streamed[-1]["finish_reason"] == "tool_calls"
        assert not reduce(str.__add__, [one["delta"].get("content") or "" for one in streamed])


def test_the_template_is_told_of_tools_and_calls(served: Served, tmp_path: Path) -> None:
    backend = _backend(served, tmp_path, "{{ tools | tojson }}" + TAGGED)
    called = {"id": "1", "function": {"name": "clock", "arguments": '{"n": 7}'}}
    history = [
        *HI,
        {"role": "assistant", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "1", "content": "noon <|im_end|>"},
    ]
    request = ChatRequest.model_validate({"model": "small", "messages": history, "tools": [CLOCK]})
    tokens = backend.prompts(request)[0]
    text = served.engine.tokenizer.decode(tokens)
    assert '[{"type": "function", "function": {"name": "clock"}}]' in text
    assert "clock:7" in text and "tool\nnoon <|im_end|>" in text
    assert sum(token in served.engine.tokenizer.stop_ids for token in tokens) == 3  # none that a message spelled


def test_a_model_may_answer_without_a_call(served: Served, tmp_path: Path) -> None:
    backend = _backend(served, tmp_path, TAGGED)
    for extra in ({}, {"tool_choice": "auto"}, {"tool_choice": "none"}):
        (answer,) = _ask(backend, **extra, max_tokens=8)
        assert answer["choices"][0]["message"]["content"]
        assert "tool_calls" not in answer["choices"][0]["message"]


@pytest.mark.parametrize(
    ("template", "extra", "param"),
    [
        (BARE, {}, "tool_choice"),
        ("{{ messages[0].content }}", {}, "tools"),
        (
            "{{ messages[0].content }}",
            {"tools": [], "messages": [{"role": "tool", "tool_call_id": "1", "content": "x"}]},
            "messages",
        ),
    ],
    ids=["auto", "template", "history"],
)
def test_what_the_model_cannot_do_is_refused(
    served: Served, tmp_path: Path, template: str, extra: dict[str, Any], param: str
) -> None:
    with pytest.raises(UsageError) as caught:
        _ask(_backend(served, tmp_path, template), **extra)
    assert caught.value.param == param


def test_a_call_has_an_id_of_its_own() -> None:
    assert ToolCall("f", "{}").id != ToolCall("f", "{}").id
