from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.front.usage import comment, of_answer, taken_out
from llmos.openai.sse import DONE, encode, sse
from llmos.usage import FRONT_DOOR, Record, Tokens

USED = Tokens(12, 8, 5)
EVENT = sse({"choices": [{"text": "a\n\n: llmos-usage [1, 2, 3]\n\nb"}]})


@pytest.mark.parametrize("before", [b"", EVENT, EVENT + EVENT])
def test_the_comment_is_taken_out_wherever_it_is_in_a_piece(before: bytes) -> None:
    assert taken_out(before + comment(USED) + DONE) == (before + DONE, USED)
    assert taken_out(before + comment(USED)) == (before, USED)


@given(st.text(max_size=40))
def test_text_that_looks_like_a_comment_stays(text: str) -> None:
    for said in (text, f"\n\n: llmos-usage {text}\n\n", ": llmos-usage [1, 2, 3]"):
        event = sse({"text": said})
        assert taken_out(event) == (event, None)
        assert taken_out(event + comment(USED) + DONE) == (event + DONE, USED)


def test_a_whole_answer_says_it_itself() -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 8}}
    text = 'as in "usage": {"prompt_tokens": 1, "completion_tokens": 1}'
    answer = {"choices": [{"message": {"content": text}}], "usage": usage, "metadata": {"usage": "all of it"}}
    assert of_answer(encode(answer)) == of_answer(json.dumps(answer).encode()) == USED
    assert of_answer(encode({"data": [], "usage": {"prompt_tokens": 4, "total_tokens": 4}})) == Tokens(4)
    for nothing in ({"choices": [{"text": text}]}, {"usage": None}, {"usage": {"total_tokens": 3}}):
        assert of_answer(encode(nothing)) is None
    assert of_answer(b'{"usage": {"prompt_tok') is None


def test_records_are_lines() -> None:
    record = Record("req_1", "k", "t", "s", "m@1", 12, 8, 5, 200, 1.5, FRONT_DOOR)
    assert Record.read(record.line()) == record and record.line().count(b"\n") == 1
    for other in (b"{}", b"[]", b"{", b'{"id": "x", "more": 1}', b'"a"', b""):
        with pytest.raises(ValueError, match=r"."):
            Record.read(other)
