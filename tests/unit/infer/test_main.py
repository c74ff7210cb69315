"""``python -m llmos.infer``: prints what the engine answers, and errors as one message."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from llmos.infer import __main__ as command
from tests.unit.infer.small import request, running, whole


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["llmos.infer", *map(str, arguments)])
    return command.main()


async def _expected(model_dir: Path, chat: bool) -> str:
    async with running(model_dir) as engine:
        encode, user = engine.tokenizer.encode, [{"role": "user", "content": "def step("}]
        tokens = engine.tokenizer.encode_chat(user) if chat else encode("def step(", add_special_tokens=True)
        return (await whole(engine, request(tuple(tokens), max_tokens=9, ignore_eos=False))).text


@pytest.mark.parametrize("more", [["def step("], ["--prompt", "def step("], ["--prompt", "def step(", "--chat"]])
def test_prints_the_answer(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    expected = asyncio.run(_expected(model_dir, "--chat" in more))
    options = ["--max-tokens", 9, "--temperature", 0, "--dtype", "float32", "--runner", "torch", "--threads", 1]
    assert _run(monkeypatch, model_dir, *more, *options) == 0
    assert capsys.readouterr().out == expected + "\n"


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [([], 2, "expected a prompt"), (["x", "--prompt", "y"], 2, "expected a prompt"), (["x"], 1, "there is no")],
)
def test_errors(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
    code: int,
    message: str,
) -> None:
    assert _run(monkeypatch, tmp_path, *extra) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["x"], "is an encoder, which writes nothing: expected `--serve`"),
        (["--serve", "--tp", "2"], "`--tp` is not for encoders"),
    ],
)
def test_an_encoder_is_only_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert _run(monkeypatch, tmp_path, *extra) == 2
    assert message in capsys.readouterr().err
