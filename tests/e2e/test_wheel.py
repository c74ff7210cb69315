"""A wheel built from the tree walks the whole road in an environment of its own, outside the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import end, free_port, processes

ROOT = Path(__file__).parents[2]
SOURCES = ("llmos", "deployments", "pyproject.toml", "README.md", "LICENSE")
RESULT = {"train_s", "total_s", "bits_per_byte", "unigram_bits", "gzip_bits", "parsed", "of"}


def run(*command: str | Path, **options: object) -> str:
    """What ``command`` prints; its stderr is shown with the test if it fails."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}"
    return str(done.stdout)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A virtual environment with the wheel and what the wheel asks for: 1.7 GB, removed in the end."""
    root = tmp_path_factory.mktemp("wheel")
    source, dist, venv = root / "source", root / "dist", root / "venv"
    for name in SOURCES:  # a copy: building in the tree would leave files there, and find old ones
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", dist, source)
    run(sys.executable, "-m", "venv", venv)
    (wheel,) = dist.glob("*.whl")
    run(venv / "bin/python", ROOT / "scripts/install.py", wheel)
    yield venv
    shutil.rmtree(root)


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


def test_the_quickstart_runs_outside_the_repository_and_leaves_no_process(home: Path) -> None:
    printed = run("llmos", "quickstart", "--steps", "20", "--port", str(free_port()))
    result = json.loads(printed.splitlines()[-1])
    assert set(result) == RESULT
    assert 0 < result["train_s"] < result["total_s"]
    assert 0 < result["bits_per_byte"] < 8  # 20 steps: better than guessing bytes
    assert 0 < result["gzip_bits"] < result["unigram_bits"] < 8
    assert 0 <= result["parsed"] <= result["of"] == 32
    assert processes(home)
    run("llmos", "down")
    assert processes(home) == []
