"""Bytes on the wire."""

from __future__ import annotations

import json

from llmos.openai.replies import ChatReply, CompletionReply, Piece, Token, usage
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.openai.sse import sse

TOKENS = (Token(b"a", -0.5, (Token(b"a", -0.5), Token(b"\xe6\xbc", -1.0))), Token(b"\xe6\xbc", -2.0))
COMPLETION = CompletionRequest(model="m", prompt="x")
CHAT = ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "x"}]})


def test_events_are_one_line_of_json() -> None:
    assert sse({"text": "é\n漢"}) == 'data: {"text":"é\\n漢"}\n\n'.encode()
    assert sse({"text": "\ud800"}) == b'data: {"text":"\\ud800"}\n\n'


def test_tokens_that_are_no_characters_are_spelled_out() -> None:
    choice = json.loads(CompletionReply(COMPLETION).whole([Piece("a", TOKENS, "length")], usage(1, 2)))["choices"][0]
    assert choice["logprobs"] == {
        "tokens": ["a", "bytes:\\xe6\\xbc"],
        "token_logprobs": [-0.5, -2.0],
        "top_logprobs": [{"a": -0.5, "bytes:\\xe6\\xbc": -1.0}, {}],
        "text_offset": [0, 1],
    }
    content = json.loads(ChatReply(CHAT).whole([Piece("a", TOKENS, "stop")], usage(1, 2)))["choices"][0]["logprobs"]
    assert content["content"][1] == {
        "token": "bytes:\\xe6\\xbc",
        "logprob": -2.0,
        "bytes": [0xE6, 0xBC],
        "top_logprobs": [],
    }


def test_nothing_to_show_is_no_event() -> None:
    assert CompletionReply(COMPLETION).chunk(0, Piece("")) == b""
    reply = ChatReply(CHAT)
    assert reply.chunk(0, Piece("")).count(b"data:") == 1  # the role
    assert reply.chunk(0, Piece("")) == b""
    assert reply.chunk(0, Piece("x", None, "stop")).count(b"data:") == 2


def test_a_whole_chat() -> None:
    found = json.loads(ChatReply(CHAT).whole([Piece("hi", None, "stop")], usage(3, 4)))
    assert (found["object"], found["model"]) == ("chat.completion", "m")
    assert found["id"].startswith("chatcmpl-")
    message = {"role": "assistant", "content": "hi", "refusal": None}
    assert found["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    counts = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert found["usage"] == {**counts, "prompt_tokens_details": {"cached_tokens": 0}}
