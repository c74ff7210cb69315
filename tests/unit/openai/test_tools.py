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
from llmos.openai.calls import CallDelta, ToolForm, ToolParser
from llmos.openai.schema import ChatRequest
from llmos.openai.tools import MAX_CALLS, Tool, calls
from llmos.serving import EngineBackend
from llmos.tool_forms import ToolCalling, form_of
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
MISTRAL = TAGGED.replace("<tool_call></tool_call>", "[TOOL_CALLS]")
NAMED = TAGGED.replace("<tool_call></tool_call>", "[TOOL_CALLS][ARGS]")
HI = [{"role": "user", "content": "How is it?"}]

TAG, MARKS, LLAMA = ToolForm("tagged"), ToolForm("marked"), ToolForm("bare", "parameters")

TEXTS: list[tuple[ToolForm, str, str, list[tuple[str, str]]]] = [
    (TAG, "no calls", "no calls", []),
    (TAG, '<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>', "", [("f", '{"a": "é"}')]),
    (
        *(TAG, 'Well.\n<tool_call>{"name": "f", "parameters": {}}</tool_call>\n<tool_call>{"name": "g"}</tool_call>\n'),
        *("Well.", [("f", "{}"), ("g", "{}")]),
    ),
    (TAG, "<tool_call>not JSON</tool_call> and on", "<tool_call>not JSON</tool_call> and on", []),
    (TAG, '<tool_call>{"name": "f", "arguments": {}}', "", [("f", "{}")]),  # the end came too early to be tagged
    (TAG, '<tool_call>{"name": "f", "arguments": {"a": [1, "}', "", [("f", '{"a": [1, "}')]),  # and here, whole
    (TAG, '<tool_call>{"name": "f", "argu', '<tool_call>{"name": "f", "argu', []),
    (TAG, '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", [("f", '{"a": 1}')]),
    (TAG, '<tool_call>{"name": "f", "arguments": "x"}</tool_call>', "", [("f", '"x"')]),
    (TAG, '<tool_call>{"name": "f", "arguments": {"a": "\\"}\\\\"}}</tool_call>', "", [("f", '{"a": "\\"}\\\\"}')]),
    (TAG, '<tool_call>{"name": "f", "arguments": {}} but</tool_call>', "but</tool_call>", [("f", "{}")]),
    (TAG, '<tool_call>{"called": 1}</tool_call>', '<tool_call>{"called": 1}</tool_call>', []),
    (TAG, "a <tool_ca", "a <tool_ca", []),
    (TAG, "<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", []),
    (TAG, '<tool_call>no <tool_call>{"name": "f"}</tool_call>', "<tool_call>no", [("f", "{}")]),
    (TAG, " \n", " \n", []),
    (
        *(MARKS, '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]'),
        *("", [("f", '{"a": 1}'), ("g", "{}")]),
    ),
    (MARKS, 'So [TOOL_CALLS][{"name": "f", "arguments": {}}] there', "So there", [("f", "{}")]),
    (MARKS, '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g{}', "", [("f", '{"a": 1}'), ("g", "{}")]),
    (MARKS, "[TOOL_CALLS]f[CALL_ID]abc123[ARGS]{}", "", [("f", "{}")]),
    (MARKS, "[TOOL_CALLS] is what I write", "[TOOL_CALLS] is what I write", []),
    (MARKS, "[TOOL_CALLS]f", "[TOOL_CALLS]f", []),
    (MARKS, "see [TOOL", "see [TOOL", []),
    (LLAMA, '{"name": "f", "parameters": {"a": 1}}', "", [("f", '{"a": 1}')]),
    (LLAMA, ' {"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', "", [("f", "{}"), ("g", "{}")]),
    (LLAMA, '{"name": "unknown", "parameters": {}} x', '{"name": "unknown", "parameters": {}} x', []),
    (LLAMA, '{"type": "function", "name": "f", "parameters": {}}', "", [("f", "{}")]),
    (LLAMA, '{"a": 1}', '{"a": 1}', []),
    (LLAMA, 'It is {"name": "f", "parameters": {}}', 'It is {"name": "f", "parameters": {}}', []),
    (LLAMA, '{"name": "f', '{"name": "f', []),
]


@pytest.mark.parametrize(("form", "text", "shown", "found"), TEXTS)
@given(st.lists(st.integers(0, 90), max_size=8))
def test_calls_are_found_however_the_text_is_cut(
    form: ToolForm, text: str, shown: str, found: list[tuple[str, str]], cuts: list[int]
) -> None:
    parser = ToolParser(form, ["f", "g"])
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [parser.push(text[a:b]) for a, b in itertools.pairwise(places)] + [parser.finish()]
    assert "".join(piece[0] for piece in pieces) == shown
    deltas = [delta for piece in pieces for delta in piece[1]]
    assert _whole(deltas) == found
    assert parser.found == len(found)
    assert len({delta.id for delta in deltas if delta.name is not None}) == len(found)


def _whole(deltas: list[CallDelta]) -> list[tuple[str, str]]:
    calls: list[tuple[str, str]] = []
    for delta in deltas:
        if delta.name is not None:
            assert delta.number == len(calls) and delta.id
            calls.append((delta.name, ""))
        name, before = calls[delta.number]
        calls[delta.number] = name, before + delta.arguments
    return calls


@given(st.text(alphabet='{}[]",:\\ <>toolca_CARGSf[]', max_size=60), st.sampled_from([TAG, MARKS, LLAMA]))
def test_no_text_is_lost_and_none_breaks_the_parser(text: str, form: ToolForm) -> None:
    one, many = ToolParser(form, ["f"]), ToolParser(form, ["f"])
    whole = one.push(text), one.finish()
    parts = [many.push(char) for char in text] + [many.finish()]
    assert "".join(part[0] for part in parts) == whole[0][0] + whole[1][0]
    assert one.found or whole[0][0] + whole[1][0] == text


def test_arguments_are_passed_on_while_they_are_written() -> None:
    parser = ToolParser(TAG)
    pieces = ['<tool_call>{"name": "f", "arg', 'uments": {"ci', 'ty": "Ul', 'm"}', "}</tool_call>"]
    deltas = [parser.push(piece)[1] for piece in pieces]
    assert [[delta.arguments for delta in some] for some in deltas] == [[], ['{"ci'], ['ty": "Ul'], ['m"}'], []]
    assert deltas[1][0].wire["function"] == {"name": "f", "arguments": '{"ci'}
    assert deltas[2][0].wire == {"index": 0, "function": {"arguments": 'ty": "Ul'}}


def test_calls_beyond_the_one_that_may_be_made_are_left_out() -> None:
    parser = ToolParser(MARKS, most=1)
    text = '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]'
    assert [delta.name for delta in parser.push(text)[1]] == ["f"]


def test_text_is_passed_on_as_soon_as_it_can_be_no_call() -> None:
    parser = ToolParser(TAG)
    assert [parser.push(piece)[0] for piece in ("Hi", " <", "b> <to", "ol_c", "ool>", "<tool_call>")] == [
        *("Hi", "", " <b>", "", " <tool_cool>", "")
    ]
    assert [ToolParser(LLAMA).push(piece)[0] for piece in ("Hi {", "{")] == ["Hi {", ""]


def test_the_grammar_of_calls_is_bounded() -> None:
    tools = [Tool.model_validate(CLOCK)]
    several, one = (calls(tools, TAG, parallel=parallel).text for parallel in (True, False))
    assert f"{{0,{MAX_CALLS - 1}}}" in several and "{0," not in one
    assert '"maxItems": 1' in calls(tools, MARKS, parallel=False).text


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


@pytest.mark.parametrize("template", [TAGGED, BARE, MISTRAL, NAMED], ids=["tagged", "bare", "marked", "named"])
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
        assert {delta["index"] for delta in deltas} == {0} and deltas[0]["function"]["name"] == name
        assert "".join(delta["function"]["arguments"] for delta in deltas) == call["function"]["arguments"]
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
    for backend in (_backend(served, tmp_path, template) for template in (TAGGED, BARE, MISTRAL)):
        for extra in ({}, {"tool_choice": "auto"}, {"tool_choice": "none"}):
            (answer,) = _ask(backend, **extra, max_tokens=8)
            assert answer["choices"][0]["message"]["content"]
            assert "tool_calls" not in answer["choices"][0]["message"]


@pytest.mark.parametrize(
    ("template", "extra", "param"),
    [
        ("{{ messages[0].content }}", {}, "tools"),
        (
            "{{ messages[0].content }}",
            {"tools": [], "messages": [{"role": "tool", "tool_call_id": "1", "content": "x"}]},
            "messages",
        ),
    ],
    ids=["template", "history"],
)
def test_what_the_model_cannot_do_is_refused(
    served: Served, tmp_path: Path, template: str, extra: dict[str, Any], param: str
) -> None:
    with pytest.raises(UsageError) as caught:
        _ask(_backend(served, tmp_path, template), **extra)
    assert caught.value.param == param


def test_control_tokens_that_calls_are_made_of_are_seen(served: Served, tmp_path: Path) -> None:
    served.engine.tokenizer.save(tmp_path)
    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    marked = json.loads(json.dumps(settings).replace("<|im_start|>", "[TOOL_CALLS]"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(marked))
    template = NAMED.replace("<|im_start|>", "").replace("<|im_end|>", "")
    (tmp_path / "chat_template.jinja").write_text(template)
    tokenizer = Tokenizer.load(tmp_path)
    ((name, mark),) = form_of(tokenizer).shown
    assert name == "[TOOL_CALLS]" and mark in tokenizer.control_ids
    decoder = tokenizer.stream({mark})
    assert "".join(decoder.push(token) for token in (mark, *tokenizer.encode("f{}"))) == "[TOOL_CALLS]f{}"
    request = ChatRequest.model_validate({"model": "m", "messages": HI, "tools": [CLOCK], "tool_choice": "required"})
    calling = ToolCalling(form_of(tokenizer))
    assert calling.shown(request) == {mark} and f"<[{mark}]>" in str(calling.constraint(request))
    assert calling.shown(ChatRequest.model_validate({"model": "m", "messages": HI})) == set()
