from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from llmos import Client, client
from llmos.cli import app, glance
from tests.unit.fake_api import KEY, FakeApi

URL = "http://127.0.0.1:8000"
JOB_YAML = """\
kind: TrainJob
name: coder
model: {preset: tiny}
data: {path: "src/*.py"}
steps: 100
output: {model: coder}
"""


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def llmos(api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``llmos ARGS…`` in this process, against ``api``, in an empty directory with a home of its own."""
    monkeypatch.setattr(Client, "of", lambda at: Client(at.url, at.key, retry_s=0, transport=httpx.MockTransport(api)))
    monkeypatch.setattr(client, "POLL_S", 0.0)
    monkeypatch.setattr(glance, "asked", lambda cluster: Client.of(cluster).status())
    for name, value in {"LLMOS_URL": URL, "LLMOS_API_KEY": KEY, "LLMOS_DEBUG": "", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LLMOS_STATE_DIR", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*args: str, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "argv", ["llmos", *args])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as end:
            app.main()
        captured = capsys.readouterr()
        return Result(int(end.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB_YAML)
    return path
