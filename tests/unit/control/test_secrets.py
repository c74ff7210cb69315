from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.control.secrets import MAX_BYTES, resolve
from llmos.errors import DataError, NotFoundError
from llmos.redact import MARK, Redactor

TEXT = st.text(st.sampled_from("abc:/\n\"'\\ é"), max_size=12)
SECRET = TEXT.filter(lambda text: bool(text.strip()))


def test_references_are_read_where_they_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "from the environment")
    (tmp_path / "token").write_text("from a file\n")
    found = resolve({"A": "env:TOKEN", "B": f"file:{tmp_path / 'token'}"})
    assert found == {"A": "from the environment", "B": "from a file"}


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKEN", raising=False)
    (tmp_path / "empty").write_text("\n")
    for reference in ("env:TOKEN", f"file:{tmp_path / 'nothing'}", f"file:{tmp_path}", f"file:{tmp_path / 'empty'}"):
        with pytest.raises(NotFoundError, match="on the head node") as error:
            resolve({"A": reference})
        assert f"secret `A`: `{reference}`" in str(error.value)


@pytest.mark.parametrize("content", [b"hush\0hush", b"hush \xff", b"hush" * MAX_BYTES])
def test_what_cannot_be_a_variable_is_refused_without_being_shown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(DataError, match="secret `A`") as error:
        resolve({"A": f"file:{tmp_path / 'token'}"})
    assert "hush" not in str(error.value)


@given(secrets=st.lists(SECRET, min_size=1, max_size=3), pieces=st.lists(TEXT, max_size=4), data=st.data())
def test_no_secret_is_left(secrets: list[str], pieces: list[str], data: st.DataObject) -> None:
    text = "".join(piece + data.draw(st.sampled_from(secrets)) for piece in pieces)
    shown = Redactor(secrets).redact(text)
    for part in shown.split(MARK):
        assert part in text and not any(secret in part for secret in secrets)


@given(secrets=st.lists(SECRET, max_size=3), text=st.text(st.sampled_from("xyz"), max_size=12))
def test_everything_else_stays(secrets: list[str], text: str) -> None:
    assert Redactor(secrets).redact(text) == text
    assert Redactor([*secrets, "-hush-"]).redact(f"{text}-hush-{text}") == f"{text}{MARK}{text}"


def test_overlapping_secrets_leave_nothing_between_them() -> None:
    assert Redactor(["abc", "bcd"]).redact("xabcdx abx") == f"x{MARK}x abx"
    assert Redactor(["aa"]).redact("aaa") == MARK


def test_a_secret_of_several_lines_is_found_line_by_line() -> None:
    redactor = Redactor(["-----BEGIN KEY-----\nMIIEvQIBADANBg\n-----END KEY-----\n"])
    assert redactor.redact("[rank 0] MIIEvQIBADANBg!") == f"[rank 0] {MARK}!"


@pytest.mark.parametrize("shown", ["{!r}", "{}"])
def test_a_secret_is_found_however_it_is_printed(shown: str) -> None:
    secret = "p\"a's\ns/w\\rd"
    assert "s/w" not in Redactor([secret]).redact(shown.format(secret))
    assert Redactor(["a/b c"]).redact("https://x/?k=a%2Fb%20c") == f"https://x/?k={MARK}"


def test_without_secrets_nothing_changes() -> None:
    assert Redactor([]).redact("a b") == "a b" and Redactor(["", " "]).redact("a b") == "a b"
