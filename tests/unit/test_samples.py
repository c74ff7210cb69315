import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos import samples


@given(st.text(alphabet="ab \n", max_size=30))
def test_cut_keeps_full_lines(text: str) -> None:
    kept = samples.cut(text)
    assert text.startswith(kept)
    assert kept == "" or kept.endswith("\n")
    assert "\n" not in text[len(kept) :]


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("def f(n):\n", "    return n\n", True),
        ("def f(n):\n", "    return n\n    if n > (", True),  # what the limit cut off does not count
        ("def f(n):\n", "    return n", False),  # no full line
        ("import os\n", "\n  \n", False),  # nothing written
        ("def f(n):\n", "return n\n", False),
        ("x =", " 1 is 1\n", True),
        ("import os\n", "x = '\0'\n", False),
    ],
)
def test_parses(prompt: str, completion: str, expected: bool) -> None:
    assert samples.parses(prompt, completion) is expected


def test_most_repeated() -> None:
    assert samples.most_repeated("a\n  a\n\n\n\n\nb\n") == 2
    assert samples.most_repeated(" \n") == 0


@pytest.mark.parametrize("prompt", samples.PROMPTS)
def test_a_prompt_alone_is_never_a_success(prompt: str) -> None:
    assert not samples.parses(prompt, "")
