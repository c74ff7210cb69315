"""A wheel built from the tree walks the whole road in an environment of its own, outside the repository: also after
Ctrl-C, and without training twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos.layout import Layout
from tests.support import end, free_port, processes

RESULT = {"train_s", "total_s", "bits_per_byte", "unigram_bits", "gzip_bits", "parsed", "of"}


def run(*command: str | Path, **options: object) -> str:
    """What ``command`` prints; its stderr is shown with the test if it fails."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}"
    return str(done.stdout)


@pytest.fixture
def home(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's home, who has that environment and no llmos yet. Ends what is left of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LLMOS_STATE_DIR", str(tmp_path / "state"))
    for name in ("PYTHONPATH", "VIRTUAL_ENV", "RAY_ADDRESS", "LLMOS_URL", "LLMOS_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    end(tmp_path)


def test_the_wheel_brings_everything_and_no_cuda(environment: Path, home: Path) -> None:
    code = "import deployments, llmos, torch; print(deployments.__file__, llmos.__file__, torch.version.cuda)"
    deployments, llmos, cuda = run(environment / "bin/python", "-c", code).split()
    assert deployments.startswith(str(environment)) and llmos.startswith(str(environment))
    assert cuda == "None" or shutil.which("nvidia-smi")


def test_the_quickstart_runs_outside_the_repository_goes_on_after_ctrl_c_and_leaves_no_process(home: Path) -> None:
    port = free_port()
    assert "goes on from there" in interrupted(port, at="starting Ray")
    assert processes(home) == []
    assert "everything that was started here has ended" in interrupted(port, at="step ")
    assert processes(home) == []
    printed, said = walked(port)
    assert "going on with job stdlib-coder-1" in said
    attempts = Layout(home / "state").job("stdlib-coder-1")
    assert "resumed from" in attempts.attempt(2).log.read_text() and not attempts.attempt(3).root.exists()
    result = json.loads(printed.splitlines()[-1])
    assert set(result) == RESULT
    assert 0 < result["train_s"] < result["total_s"]
    assert 0 < result["bits_per_byte"] < 8  # 20 steps: better than guessing bytes
    assert 0 < result["gzip_bits"] < result["unigram_bits"] < 8
    assert 0 <= result["parsed"] <= result["of"] == 32
    printed, said = walked(port)
    assert "stdlib-coder@1 has been trained already, by job stdlib-coder-1" in said
    assert {**json.loads(printed.splitlines()[-1]), "total_s": 0} == {**result, "total_s": 0}
    assert processes(home)
    run("llmos", "down")
    assert processes(home) == []


def quickstart(port: int) -> subprocess.Popen[str]:
    command = ["llmos", "quickstart", "--steps", "20", "--port", str(port)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def walked(port: int) -> tuple[str, str]:
    """What a quickstart says that nobody interrupts: stdout, stderr."""
    with quickstart(port) as road:
        printed, said = road.communicate()
    assert road.returncode == 0, said
    return printed, said


def interrupted(port: int, at: str) -> str:
    """What a quickstart still says after Ctrl-C was pressed at its first line with ``at`` in it."""
    with quickstart(port) as road:
        assert road.stderr is not None
        assert any(at in line for line in road.stderr), f"it never said {at!r}"
        os.kill(road.pid, signal.SIGINT)
        rest = road.stderr.read()
        assert road.wait() == 130
    assert "Traceback" not in rest
    return rest
