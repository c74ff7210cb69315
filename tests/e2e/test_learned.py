"""The quickstart at full size: in at most six minutes, a model that has learned something."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import LLMOS, end, free_port


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "LLMOS_STATE_DIR", "LLMOS_URL", "LLMOS_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    end(tmp_path)


@pytest.mark.slow
def test_the_quickstart_learns_to_write_python(home: Path) -> None:
    command = [str(LLMOS), "quickstart", "--port", str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["total_s"] <= 360
    assert figures["bits_per_byte"] <= 0.9 * figures["gzip_bits"] < figures["unigram_bits"]
    assert figures["of"] == 32 and figures["parsed"] >= 1
    said = re.search(r"no line more than (\d+) times", done.stderr)
    assert said and int(said[1]) <= 5
    subprocess.run([LLMOS, "down"], check=True)
