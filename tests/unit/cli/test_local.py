"""What ``llmos train --local`` says, and its exit codes. What it does: tests/unit/test_local.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmos import local
from llmos.layout import Layout
from llmos.views import JobView
from tests.unit.cli.conftest import Run
from tests.unit.fake_api import FakeApi


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets a local job end in a certain way; returns what it was started with."""
    started: list[Any] = []

    def end(phase: str, **more: Any) -> list[Any]:
        def train(spec: Any, layout: Layout, on_progress: Any, report: Any) -> JobView:
            started.append(spec)
            log = layout.job(spec.name).attempt(1).log
            log.parent.mkdir(parents=True)
            log.write_text("".join(f"line {number}\n" for number in range(40)))
            view: dict[str, Any] = {"id": spec.name, "name": spec.name, "phase": phase, "reason": "", "attempt": 1}
            view |= {"step": 3, "steps": spec.steps, "metrics": {}, "model": None, "created_at": 1.0}
            ended = JobView(view | {"started_at": 1.0, "ended_at": 2.0} | more)
            on_progress(ended, [])
            return ended

        monkeypatch.setattr(local, "train", train)
        return started

    return end


def test_local_needs_no_cluster(llmos: Run, job_file: Path, api: FakeApi, ends: Any) -> None:
    started = ends("succeeded", path="/there/export", model="coder@1")
    result = llmos("train", "job.yaml", "--local", "--set", "optimizer.learning_rate=3e-4", "-o", "json")
    assert result.code == 0 and json.loads(result.out)["path"] == "/there/export"
    assert result.err == "coder: succeeded\nthe model is in /there/export, registered as coder@1\n"
    assert started[0].optimizer.learning_rate == 3e-4 and api.requests == []


def test_beside_a_cluster_it_says_how_to_register(llmos: Run, job_file: Path, ends: Any) -> None:
    ends("succeeded", path="/there/export")
    told = llmos("train", "job.yaml", "--local").err
    assert "`llmos models import /there/export --name coder` registers it" in told


def test_stopped_is_130_and_failed_is_1_with_the_end_of_the_log(llmos: Run, job_file: Path, ends: Any) -> None:
    ends("cancelled", reason="stopped after step 3; the same command goes on from there")
    stopped = llmos("train", "job.yaml", "--local")
    assert (stopped.code, stopped.out) == (130, "") and "the same command goes on" in stopped.err


def test_failed_is_1_with_the_end_of_the_log(llmos: Run, job_file: Path, ends: Any) -> None:
    ends("failed", reason="no room")
    failed = llmos("train", "job.yaml", "--local")
    assert failed.code == 1 and failed.err.startswith("coder: failed (no room)\nlast lines of its log")
    assert "line 39" in failed.err and "line 24\n" not in failed.err


def test_a_path_that_is_set_belongs_to_the_current_directory(
    llmos: Run, job_file: Path, ends: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, elsewhere = ends("succeeded", path="/there/export"), job_file.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert llmos("train", "../job.yaml", "--local", "--set", "data.path=more").code == 0
    assert started[0].data.path == (str(elsewhere / "more"),)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.lerning_rate=1", "`lerning_rate` is not a field of `optimizer`; did you mean `learning_rate`?"),
        ("learning_rate=1", "did you mean `optimizer.learning_rate`?"),
        ("steps=many", "`steps`: expected a whole number, found the text 'many'"),
        ("steps=[1", "`--set steps`:"),
        ("steps", "`--set steps`: expected FIELD=VALUE"),
        ("mesh.dp=2.5", "`mesh.dp`: expected a whole number"),
    ],
)
@pytest.mark.parametrize("way", ["--local", "--dry-run"])
def test_a_wrong_setting_is_refused_by_every_way_of_running(
    llmos: Run, job_file: Path, api: FakeApi, setting: str, message: str, way: str
) -> None:
    result = llmos("train", "job.yaml", way, "--set", setting)
    assert (result.code, result.out) == (2, "") and message in result.err
    assert api.requests == []


def test_a_dry_run_here_asks_no_cluster(llmos: Run, job_file: Path, api: FakeApi) -> None:
    told = llmos("train", "job.yaml", "--local", "--dry-run", "--set", "mesh.dp=2")
    assert told.code == 0 and "dp 2, on 2 × CPU" in told.out
    missing = llmos("train", "job.yaml", "--local", "--dry-run", "--set", "model={ref: base}")
    assert missing.code == 1 and "no model `base`: found none of that name" in missing.err
    assert api.requests == []
