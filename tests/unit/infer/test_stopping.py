"""However a text is cut into pieces, what is shown of it ends before the stop string that is complete first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.infer.stopping import StopFinder

SHORT = st.text("ab\n", max_size=12)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


def _expected(text: str, stops: list[str]) -> str:
    """By trying every beginning of the text, the longest stop string first."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)]
    return text


@given(st.lists(SHORT, max_size=8), STOPS)
def test_pieces_add_up_to_the_text_before_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    finder = StopFinder(stops)
    shown = "".join([finder.push(piece) for piece in pieces]) + finder.flush()
    text = "".join(pieces)
    assert shown == _expected(text, stops)
    assert (finder.found is not None) == any(stop in text for stop in stops)


@given(st.lists(SHORT, max_size=8), STOPS)
def test_no_more_is_held_back_than_could_become_a_stop(pieces: list[str], stops: list[str]) -> None:
    finder, shown, text = StopFinder(stops), "", ""
    for piece in pieces:
        shown, text = shown + finder.push(piece), text + piece
        if finder.found is None:
            held = text.removeprefix(shown)
            assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "stops", "shown"),
    [
        (["one\n", "\ntwo"], ["\n\n"], ["one", ""]),
        (["one\n", "two"], ["\n\n"], ["one", "\ntwo"]),
        (["abcd"], ["bcd", "c"], ["ab"]),
        (["xabc"], ["abc", "bc"], ["x"]),
        (["a", "stop", "b"], ["stop"], ["a", "", ""]),
    ],
)
def test_examples(pieces: list[str], stops: list[str], shown: list[str]) -> None:
    finder = StopFinder(stops)
    assert [finder.push(piece) for piece in pieces] == shown
