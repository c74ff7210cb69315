"""What holds for every command: help, exit codes, errors, interruption, pipes, colour, start-up, documentation."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from llmos import __version__
from llmos.cli.commands import app
from tests.unit.cli.conftest import Run
from tests.unit.fake_api import KEY, FakeApi, listening

ROOT = Path(__file__).parents[3]
MAIN = "import sys; sys.argv[0] = 'llmos'; from llmos.cli.app import main; main()"


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by its words, as in ``models import``."""

    def walk(group: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name, command in getattr(group, "commands", {}).items():
            yield " ".join((*words, name)), command
            yield from walk(command, (*words, name))

    yield from walk(typer.main.get_command(app), ())


def process(*args: str, url: str = "http://127.0.0.1:1", main: str = MAIN, **options: Any) -> subprocess.Popen[bytes]:
    env = {**os.environ, "LLMOS_URL": url, "LLMOS_API_KEY": KEY, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    env |= options.pop("env", {})
    return subprocess.Popen([sys.executable, "-c", main, *args], env=env, cwd=ROOT, **options)


def test_version(llmos: Run) -> None:
    assert llmos("--version").out == f"llmos {__version__}\n"


def test_help_lists_every_command_and_the_exit_codes(llmos: Run) -> None:
    result = llmos("--help")
    assert result.code == 0
    shown = " ".join(result.out.split())
    assert "Exit codes: 0 done · 1 it failed" in shown and "130 Ctrl-C" in shown
    for word, _ in commands():
        assert " " in word or re.search(rf"\b{word}\b", shown), word


@pytest.mark.parametrize("word", [word for word, _ in commands()])
def test_every_command_explains_itself(llmos: Run, word: str) -> None:
    result = llmos(*word.split(), "--help")
    assert result.code == 0 and f"Usage: llmos {word}" in result.out


def test_no_arguments_is_a_question_for_help(llmos: Run) -> None:
    assert "Usage: llmos" in "".join((llmos().out, llmos().err))


@pytest.mark.parametrize(
    "args", [["nope"], ["jobs", "--nope"], ["jobs", "-o", "xml"], ["describe"], ["up", "--port", "0"]]
)
def test_wrong_usage_is_exit_code_2(llmos: Run, api: FakeApi, args: list[str]) -> None:
    result = llmos(*args)
    assert (result.code, result.out) == (2, "")
    assert "Usage: llmos" in result.err and "Traceback" not in result.err
    assert api.requests == []


def test_a_mistyped_command_is_guessed(llmos: Run) -> None:
    assert "Did you mean 'jobs'" in llmos("job").err


def test_debug_shows_the_traceback_of_an_error(llmos: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" not in llmos("describe", "nope").err
    result = llmos("--debug", "describe", "nope")
    assert (
        result.code == 1
        and "Traceback" in result.err
        and result.err.endswith("error: no job `nope`\n  see `llmos jobs`\n")
    )
    monkeypatch.setenv("LLMOS_DEBUG", "1")
    assert "Traceback" in llmos("describe", "nope").err


def test_an_unexpected_error_is_one_line_and_the_way_to_its_traceback(llmos: Run, api: FakeApi) -> None:
    api.jobs = [{"id": "no other field"}]
    result = llmos("jobs")
    assert result.code == 1 and result.err.startswith("error: AttributeError: JobView has no field `")
    assert result.err.endswith("see why with `llmos --debug jobs`\n") and result.err.count("\n") == 2


def test_without_a_cluster_the_error_says_what_to_do(llmos: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMOS_URL")
    result = llmos("jobs")
    assert result.code == 1
    assert result.err.startswith("error: no llmos cluster is known: LLMOS_URL is not set and ")
    assert "`llmos up`" in result.err and "`llmos login URL`" in result.err


def test_nobody_at_the_address() -> None:
    with process("jobs", stderr=subprocess.PIPE, stdout=subprocess.PIPE) as command:
        out, err = command.communicate(timeout=30)
    assert (command.returncode, out) == (1, b"")
    assert err.startswith(b"error: the cluster at http://127.0.0.1:1 cannot be reached") and b"llmos up" in err


def test_ctrl_c_leaves_the_job_alone_and_says_how_to_come_back(api: FakeApi, tmp_path: Path) -> None:
    api.steps_per_look = 0
    api.add_job()
    with (
        listening(api) as url,
        process("wait", "coder", url=url, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as command,
    ):
        assert command.stderr and command.stderr.readline() == b"coder-1: running\n"
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=30)
    assert (command.returncode, out) == (130, b"")
    assert (
        err.decode().strip() == "job coder goes on: come back with `llmos wait coder`, end it with `llmos cancel coder`"
    )
    assert api.jobs[0]["phase"] == "running"


@pytest.mark.parametrize(("command", "jobs"), [("jobs", 1), ("jobs", 3000), ("status", 0)])
def test_a_reader_that_leaves_early_is_no_error(api: FakeApi, command: str, jobs: int) -> None:
    for _ in range(jobs):
        api.add_job()
    read, write = os.pipe()
    os.close(read)
    with listening(api) as url, process(command, url=url, stdout=write, stderr=subprocess.PIPE) as asked:
        os.close(write)
        _, err = asked.communicate(timeout=30)
    assert (asked.returncode, err) == (1, b"")


def on_a_terminal(url: str, *args: str, **env: str) -> str:
    """What a person sees: both streams on a pseudo-terminal."""
    ours, theirs = pty.openpty()
    with process(*args, url=url, stdout=theirs, stderr=theirs, stdin=theirs, env={"COLUMNS": "120", **env}) as command:
        os.close(theirs)
        seen = b""
        try:
            while piece := os.read(ours, 65536):
                seen += piece
        except OSError:  # Linux: the other end was closed
            pass
    os.close(ours)
    assert command.returncode == 0, seen
    return seen.decode()


def test_a_terminal_gets_a_live_bar_and_colour(api: FakeApi, tmp_path: Path) -> None:
    api.add_job()
    with listening(api) as url:
        seen = on_a_terminal(url, "wait", "coder")
        plain = on_a_terminal(url, "jobs", NO_COLOR="1")
    assert "coder running" in seen and "━" in seen
    assert "step 50/100 · loss 4.000 · 9,600 tokens/s" in seen
    assert "\x1b[32msucceeded\x1b[0m" in seen
    assert "succeeded" in plain and "\x1b" not in plain


def test_help_loads_neither_ray_nor_torch_and_is_quick() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); sys.argv = ['llmos', '--help']\n"
        "from llmos.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: print(time.perf_counter() - t, *sys.modules, file=sys.stderr)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60) for _ in range(3)]
    taken_s, *loaded = min((run.stderr.split() for run in runs), key=lambda words: float(words[0]))
    assert not {name.partition(".")[0] for name in loaded} & {"ray", "torch", "httpx", "pydantic", "openai", "yaml"}
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import asyncio, json"], check=True, timeout=60)
    assert float(taken_s) < max(0.5, 10 * (time.perf_counter() - started))


@pytest.mark.parametrize(
    ("typed", "expected"), [("llmos mod", "models"), ("llmos models im", "import"), ("llmos jobs --out", "--output")]
)
def test_the_shell_completes_commands_and_options(typed: str, expected: str) -> None:
    env = {"_LLMOS_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    with process(env=env, stdout=subprocess.PIPE) as command:
        assert command.communicate(timeout=30)[0].decode().split() == [expected]


def test_completion_can_be_installed(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    with process("--install-completion", "bash", env=env, stdout=subprocess.PIPE) as command:
        assert b"bash completion installed" in command.communicate(timeout=30)[0]
    assert "_LLMOS_COMPLETE=complete_bash" in "".join(
        path.read_text() for path in tmp_path.rglob("*") if path.is_file()
    )


def test_every_command_and_option_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    for word, command in commands():
        assert f"`llmos {word}" in text, f"docs/cli.md does not mention `llmos {word}`"
        for option in (name for param in command.params for name in param.opts if name.startswith("--")):
            assert option in ("--help",) or option in text, f"docs/cli.md does not mention {option} of `llmos {word}`"


def test_every_command_that_the_project_mentions_exists() -> None:
    known = {word for word, _ in commands()}
    files = [*(ROOT / "llmos").rglob("*.py"), ROOT / "docs" / "cli.md"]
    for file in files:
        for mention in re.findall(r"`llmos ([a-z]+)", file.read_text()):
            assert mention in known, f"{file} mentions `llmos {mention}`, which is not a command"


def test_json_is_the_servers_whole_answer(llmos: Run, api: FakeApi) -> None:
    api.add_job(phase="succeeded", brand_new_field={"größe": 1})
    assert json.loads(llmos("jobs", "-o", "json").out)[0]["brand_new_field"] == {"größe": 1}
