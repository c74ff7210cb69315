"""Talking to a service from the terminal. What `openai` does is replaced: the answers are made here."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from llmos import Client
from tests.unit.cli.conftest import Run
from tests.unit.fake_api import FakeApi


class Stream:
    """An answer in three pieces; the last can be Ctrl-C."""

    def __init__(self, text: str, interrupted: bool = False) -> None:
        self.pieces, self.interrupted, self.closed = ["re: ", text, None], interrupted, False

    def __iter__(self) -> Iterator[Any]:
        yield SimpleNamespace(choices=[])  # of usage
        for piece in self.pieces:
            yield SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(content=piece))])
        if self.interrupted:
            raise KeyboardInterrupt

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was asked so far; a question `stop` is interrupted."""
    found: list[dict[str, Any]] = []

    def create(**request: Any) -> Stream:
        found.append(request | {"messages": [dict(turn) for turn in request["messages"]]})
        said = request["messages"][-1]["content"]
        return Stream(said, interrupted=said == "stop")

    completions = SimpleNamespace(create=create)
    openai = SimpleNamespace(chat=SimpleNamespace(completions=completions))
    monkeypatch.setattr(Client, "openai", lambda _: openai)
    return found


def test_a_model_is_served_before_it_is_asked(llmos: Run, api: FakeApi, asked: list[dict[str, Any]]) -> None:
    result = llmos("run", "coder@1", "hello", "--max-tokens", "5", "--system", "Be brief.")
    assert (result.code, result.out) == (0, "re: hello\n")
    assert result.err == "coder@1 is not served yet: starting service coder\n"
    assert asked == [
        {
            **{"model": "coder", "stream": True, "max_tokens": 5},
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
        }
    ]
    assert llmos("run", "coder@1", "-", stdin="from a pipe").out == "re: from a pipe\n"
    assert list(api.services) == ["coder"]  # it is served by now
    assert api.services["coder"]["spec"]["replicas"] == {"min": 0, "max": 1}
    llmos("run", "coder@2", "hello")
    assert list(api.services) == ["coder", "coder-2"]  # not instead of the other version


def test_a_talk_remembers_what_was_said(llmos: Run, api: FakeApi, asked: list[dict[str, Any]]) -> None:
    assert "there is no service to talk to" in llmos("chat").err
    llmos("serve", "coder@1")
    result = llmos("chat", stdin="one\nstop\n/new\nthree\n/bye\nnever\n")
    assert result.code == 0 and result.out == "re: one\nre: stop\nre: three\n"
    said = [[turn["content"] for turn in request["messages"]] for request in asked]
    assert said == [["one"], ["one", "re: one", "stop"], ["three"]]
    llmos("serve", "coder@1", "--name", "other")
    assert "which service: coder, other?" in llmos("chat").err


def test_control_characters_of_a_model_stay_out_of_the_terminal(
    llmos: Run, api: FakeApi, asked: list[dict[str, Any]]
) -> None:
    assert llmos("run", "coder", "a\x1b[2Jb\n\tc").out == "re: a[2Jb\n\tc\n"


def test_a_directory_is_imported_once(llmos: Run, api: FakeApi, asked: list[dict[str, Any]], tmp_path: Any) -> None:
    (tmp_path / "Mine").mkdir()
    (tmp_path / "Mine" / "config.json").write_text("{}")
    llmos("serve", "./Mine", "--replicas", "0..2")
    assert api.services["mine"]["spec"]["replicas"] == {"min": 0, "max": 2}
    assert api.services["mine"]["spec"]["model"] == "mine@1" and len(api.models) == 1
    api.models[0] |= {"created_at": 2e9, "lineage": {"imported_from": str(tmp_path / "Mine")}}
    llmos("serve", "Mine")
    assert len(api.models) == 1
    for wrong in ("0", "2..1", "-1", "x"):
        assert llmos("serve", "coder@1", f"--replicas={wrong}").code == 2
