"""The wheel's environment, installed while the tests before it run: those mostly wait, and it takes minutes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import ROOT

SOURCES = ("llmos", "deployments", "pyproject.toml", "README.md", "LICENSE")
LAST = 19  # of 19 steps of niceness: whatever else runs goes first


@dataclass(frozen=True)
class Building:
    """An environment under construction."""

    root: Path
    process: subprocess.Popen[bytes]

    @property
    def venv(self) -> Path:
        return self.root / "venv"

    @property
    def log(self) -> Path:
        return self.root / "log"


BUILDING = pytest.StashKey[Building]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin before the first test if one will ask for the environment."""
    if not session.config.option.collectonly and any("environment" in item.fixturenames for item in session.items):  # type: ignore[attr-defined]
        session.config.stash[BUILDING] = _begin()


def pytest_unconfigure(config: pytest.Config) -> None:
    if building := config.stash.get(BUILDING, None):
        with suppress(ProcessLookupError):  # usually over long ago
            os.killpg(building.process.pid, signal.SIGKILL)
        # 60,000 files: their removal takes longer than the tests, and nobody has to wait for it. It belongs to no
        # test's home: with HOME in its environment a cluster's `llmos down` would seem to have left it
        command = ["sh", "-c", 'rm -rf "$0" >/dev/null 2>&1 &', building.root]
        subprocess.run(command, check=True, env={"PATH": os.defpath})


@pytest.fixture(scope="session")
def environment(request: pytest.FixtureRequest) -> Path:
    """A virtual environment with the wheel and what the wheel asks for: 1.7 GB."""
    building = request.config.stash[BUILDING]
    assert building.process.wait() == 0, building.log.read_text()
    return building.venv


def _begin() -> Building:
    root = Path(tempfile.mkdtemp(prefix="llmos-wheel-"))
    for name in SOURCES:  # a copy: building in the tree would leave files there, and find old ones
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (root / "source").mkdir(exist_ok=True)
        copy(ROOT / name, root / "source" / name)
    script = f"""
        set -eu
        {sys.executable} -m build --wheel --outdir {root}/dist {root}/source
        {sys.executable} -m venv {root}/venv
        {root}/venv/bin/python {ROOT}/scripts/install.py {root}/dist/*.whl
    """
    with (root / "log").open("wb") as log:
        command = ["nice", "-n", str(LAST), "sh", "-c", script]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    return Building(root, process)
