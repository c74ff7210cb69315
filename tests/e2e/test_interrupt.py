"""Ctrl-C in the quickstart: it stops cleanly, goes on where it was, and trains nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos.layout import Layout
from tests.support import LLMOS, ROOT, end, free_port, processes

STEPS = 24


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's home with no llmos yet. Ends what is left of it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LLMOS_STATE_DIR", str(tmp_path / "state"))
    for name in ("RAY_ADDRESS", "LLMOS_URL", "LLMOS_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    end(tmp_path)


def quickstart() -> subprocess.Popen[str]:
    command = [str(LLMOS), "quickstart", "--steps", str(STEPS), "--data", str(ROOT / "llmos" / "**" / "*.py")]
    command += ["--port", str(free_port())]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def interrupted_at(said: str) -> str:
    """What a quickstart still says on stderr after Ctrl-C was pressed at the first line with ``said`` in it."""
    with quickstart() as road:
        assert road.stderr is not None
        assert any(said in line for line in road.stderr), f"it never said {said!r}"
        os.kill(road.pid, signal.SIGINT)
        rest = road.stderr.read()
        assert road.wait() == 130
    assert "Traceback" not in rest
    return rest


def test_ctrl_c_at_each_stage_and_then_the_rest_of_the_road(home: Path) -> None:
    assert "goes on from there" in interrupted_at("starting Ray")
    assert processes(home) == []
    assert "everything that was started here has ended" in interrupted_at("step ")
    assert processes(home) == []
    with quickstart() as road:
        printed, said = road.communicate()
    assert road.returncode == 0, said
    assert "going on with job stdlib-coder-1" in said
    attempts = Layout(home / "state").job("stdlib-coder-1")
    assert "resumed from" in attempts.attempt(2).log.read_text() and not attempts.attempt(3).root.exists()
    first = json.loads(printed.splitlines()[-1])
    with quickstart() as road:  # finds the cluster of the last one, although it asks for another port
        _, said = road.communicate()
    assert "is up already" in said and road.returncode == 1
    subprocess.run([LLMOS, "down"], check=True)
    with quickstart() as road:
        printed, said = road.communicate()
    assert "stdlib-coder@1 has been trained already, by job stdlib-coder-1" in said
    again = json.loads(printed.splitlines()[-1])
    assert {**again, "total_s": 0} == {**first, "total_s": 0}
    subprocess.run([LLMOS, "down"], check=True)
    assert processes(home) == []
