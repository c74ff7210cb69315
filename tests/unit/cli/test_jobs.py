from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import JOB_YAML, Run
from tests.unit.fake_api import FakeApi, error

SERVICE_YAML = "kind: Service\nname: chat\nmodel: coder@1\n"


def table(text: str) -> list[dict[str, str]]:
    """The rows of an aligned table by the names of its columns, cut at the positions of the header."""
    header, *rows = text.splitlines()
    names = header.split()
    starts = [header.index(name) for name in names]
    ends = [*starts[1:], None]
    return [{n: row[a:b].strip() for n, a, b in zip(names, starts, ends, strict=True)} for row in rows]


def test_submit_takes_every_kind_in_one_file(llmos: Run, job_file: Path, api: FakeApi) -> None:
    job_file.write_text(f"{JOB_YAML}---\n{SERVICE_YAML}")
    result = llmos("submit", "job.yaml")
    assert result.code == 0 and result.err == ""
    assert table(result.out) == [
        {"KIND": "TrainJob", "ID": "coder-1", "PHASE": "queued"},
        {"KIND": "Service", "ID": "chat", "PHASE": "starting"},
    ]
    assert api.jobs[0]["spec"]["data"]["path"] == [str(job_file.parent / "src/*.py")]
    assert list(api.services) == ["chat"]


def test_a_function_is_submitted_like_any_job(llmos: Run, job_file: Path, api: FakeApi) -> None:
    job_file.write_text("kind: TrainFunction\nname: mine\nsteps: 100\nfunction: {call: 'loop:main', path: code}\n")
    assert table(llmos("submit", "job.yaml").out) == [{"KIND": "TrainFunction", "ID": "mine-1", "PHASE": "queued"}]
    assert api.jobs[0]["spec"]["function"] == {"call": "loop:main", "path": str(job_file.parent / "code")}
    assert llmos("train", "job.yaml", "--set", "workers.max=2").code == 0
    assert api.jobs[1]["spec"]["workers"]["max"] == 2
    result = llmos("train", "job.yaml", "--dry-run")
    assert result.code == 2 and "job.yaml holds a TrainFunction, whose function decides that" in result.err


def test_submit_reads_stdin_and_prints_json(llmos: Run) -> None:
    result = llmos("submit", "-", "-o", "json", stdin=JOB_YAML)
    assert result.code == 0
    (job,) = json.loads(result.out)
    assert (job["kind"], job["id"], job["steps"]) == ("TrainJob", "coder-1", 100)


def test_a_wrong_file_is_refused_before_anything_is_submitted(llmos: Run, job_file: Path, api: FakeApi) -> None:
    job_file.write_text(f"{JOB_YAML}optimizer: {{lerning_rate: 1}}\n---\n{SERVICE_YAML}replicas: two\n")
    result = llmos("submit", "job.yaml")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: job.yaml has 2 problems:\n")
    assert "line 7: `lerning_rate` is not a field of `optimizer`; did you mean `learning_rate`?" in result.err
    assert "line 12: " in result.err and "`replicas`" in result.err
    assert api.requests == []


def test_what_was_submitted_before_a_refusal_is_still_told(llmos: Run, job_file: Path, api: FakeApi) -> None:
    job_file.write_text(f"{JOB_YAML}---\n{SERVICE_YAML}")
    api.serve = lambda name, body: error(404, "not_found", "no model `coder@1`", "see `llmos models`")  # type: ignore[method-assign]
    result = llmos("submit", "job.yaml")
    assert result.code == 1
    assert [row["ID"] for row in table(result.out)] == ["coder-1"]
    assert result.err == "error: no model `coder@1`\n  see `llmos models`\n"


def test_a_missing_file_is_named(llmos: Run) -> None:
    result = llmos("submit", "nowhere.yaml")
    assert result.code == 1 and result.out == ""
    assert result.err.startswith("error: no file `") and "nowhere.yaml" in result.err


def test_train_follows_the_job_and_prints_how_it_ended(llmos: Run, job_file: Path, api: FakeApi) -> None:
    result = llmos("train", "job.yaml", "--set", "steps=200", "--set", "optimizer.learning_rate=3e-4")
    assert result.code == 0
    (row,) = table(result.out)
    assert (row["ID"], row["PHASE"], row["STEP"], row["MODEL"]) == ("coder-1", "succeeded", "200/200", "coder@1")
    assert api.jobs[0]["spec"]["optimizer"]["learning_rate"] == 3e-4
    lines = result.err.splitlines()
    assert lines[:2] == ["job coder-1 is submitted", "coder-1: running"]
    assert "coder-1: step 50/200 · loss 4.000 · 9,600 tokens/s" in lines
    assert lines[-2:] == ["coder-1: succeeded", "serve it with `llmos serve coder@1`"]


def test_train_of_a_job_that_fails_shows_why_and_the_end_of_its_log(llmos: Run, job_file: Path, api: FakeApi) -> None:
    api.fate = "failed"
    api.log = "".join(f"line {i}\n" for i in range(40)) + "ValueError: boom\x1b[2J\n"
    result = llmos("train", "job.yaml", "-o", "json")
    assert result.code == 1
    assert json.loads(result.out)["phase"] == "failed"
    assert "job coder-1 failed (attempt 1 failed: ValueError: boom)" in result.err
    assert "  line 39\n  ValueError: boom" in result.err
    assert "line 20\n" not in result.err and "\x1b" not in result.err


def test_train_takes_exactly_one_job(llmos: Run, job_file: Path, api: FakeApi) -> None:
    job_file.write_text(f"{JOB_YAML}---\n{SERVICE_YAML}")
    result = llmos("train", "job.yaml")
    assert result.code == 2
    assert result.err == (
        "error: job.yaml holds TrainJob, Service: expected one job\n  for several, use `llmos submit job.yaml`\n"
    )
    assert llmos("train", "job.yaml", "--set", "steps").code == 2
    assert api.requests == []


def test_train_can_ask_for_a_profile(llmos: Run, job_file: Path, api: FakeApi) -> None:
    assert llmos("train", "job.yaml", "--profile").code == 0
    assert api.jobs[0]["spec"]["profile"] == {"start_step": 5, "steps": 3}
    job_file.write_text(f"{JOB_YAML}profile: {{start_step: 9}}\n")
    assert llmos("train", "job.yaml", "--profile").code == 0
    assert api.jobs[1]["spec"]["profile"]["start_step"] == 9


def test_logs_go_to_stdout_as_they_are(llmos: Run, api: FakeApi) -> None:
    api.log = "rank 0: hello\n\ttab\x1b[1mbold\x1b[0m\n"
    api.add_job(phase="succeeded")
    assert llmos("logs", "coder").out == api.log
    assert llmos("logs", "-f", "coder").out == api.log


def test_cancel_and_wait_take_several_jobs(llmos: Run, api: FakeApi) -> None:
    api.add_job()
    api.add_job("other")
    result = llmos("cancel", "coder", "other-2")
    assert (result.code, result.out) == (0, "")
    assert result.err == "job coder-1 is being cancelled\njob other-2 is being cancelled\n"
    result = llmos("wait", "coder", "other")
    assert result.code == 1
    assert [row["PHASE"] for row in table(result.out)] == ["cancelled", "cancelled"]


def test_wait_succeeds_if_every_job_does(llmos: Run, api: FakeApi) -> None:
    api.add_job()
    result = llmos("wait", "coder", "-o", "json")
    assert result.code == 0 and json.loads(result.out)[0]["model"] == "coder@1"


def test_wait_gives_up_at_its_timeout(llmos: Run, api: FakeApi) -> None:
    api.steps_per_look = 0
    api.add_job()
    result = llmos("wait", "coder", "--timeout", "0")
    assert result.code == 1 and "error: gave up waiting: job coder-1 is still running" in result.err


@pytest.mark.parametrize("command", ["describe", "logs", "cancel", "wait"])
def test_a_job_that_does_not_exist(llmos: Run, command: str) -> None:
    result = llmos(command, "nope")
    assert (result.code, result.out) == (1, "")
    assert result.err == "error: no job `nope`\n  see `llmos jobs`\n"
