"""A job on this machine, in processes of its own: watched, stopped, gone on with, registered."""

from __future__ import annotations

import fcntl
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from llmos import local
from llmos.errors import ConflictError, LlmosError, NotFoundError, UsageError
from llmos.layout import Layout
from llmos.models import Tokenizer
from llmos.spec import Mesh, TrainJob, parse
from llmos.views import JobView, MetricsRow


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def job(text: Path, **changes: Any) -> TrainJob:
    """Of a second or so; its text is two small files in ``text``."""
    text.mkdir(exist_ok=True)
    for number in range(2):
        (text / f"{number}.txt").write_text(f"{number} rows of words that repeat, and repeat again\n" * 40)
    fields: dict[str, Any] = {
        **{"kind": "TrainJob", "name": "tiny", "model": {"preset": "nano"}, "output": {"model": "coder"}},
        **{"data": {"path": str(text), "vocab_size": 280, "validation_fraction": 0.4}, "steps": 6},
        **{"batch_size": 2, "sequence_length": 16, "precision": "fp32"},
    }
    spec = parse(fields | changes)
    assert isinstance(spec, TrainJob)
    return spec


class Seen:
    """Everything ``on_progress`` and ``report`` were told; presses Ctrl-C at the first step, if it should."""

    def __init__(self, interrupts: int = 0) -> None:
        self.phases: list[str] = []
        self.steps: list[int] = []
        self.said: list[str] = []
        self._interrupts = interrupts

    def __call__(self, job: JobView, rows: list[MetricsRow]) -> None:
        self.steps += [row.step for row in rows]
        if job.phase not in self.phases[-1:]:
            self.phases.append(job.phase)
        if self.steps and self._interrupts:
            self._interrupts -= 1
            raise KeyboardInterrupt


@pytest.mark.timeout(240)  # starts torch twice
def test_ctrl_c_saves_and_the_same_job_goes_on_and_ends_in_the_registry(
    tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_KEY", "s3cret-of-ours")
    spec = job(tmp_path / "text", steps=400, secrets={"KEY": "env:OUR_KEY"})
    first, second = Seen(interrupts=1), Seen()
    stopped = local.train(spec, layout, first, first.said.append)
    assert stopped.phase == "cancelled" and "the same command goes on from there" in stopped.reason
    assert first.said == ["saving a checkpoint after this step; Ctrl-C again ends at once"]
    assert first.phases == ["starting", "running", "cancelled"]
    assert first.steps == list(range(1, stopped.step + 1)) and 0 < stopped.step < 400
    log = layout.job("tiny").attempt(1).log.read_text()
    assert "[rank 0]" in log and "s3cret" not in log
    done = local.train(spec, layout, second, second.said.append)
    assert not multiprocessing.active_children()
    assert done.succeeded and done.step == 400 and done.attempt == 2 and "bits_per_byte" in done.metrics
    assert second.phases == ["starting", "running", "succeeded"]
    assert second.steps == list(range(stopped.step + 1, 401))
    assert done.spec["mesh"]["dp"] == 1  # `auto`, decided
    assert Path(done.path) == layout.job("tiny").export and done.model == "coder@1"
    assert Tokenizer.load(local.registered("coder", layout)).vocab_size <= 280
    with pytest.raises(NotFoundError, match="no model `coder@2`: found coder@1"):
        local.registered("coder@2", layout)


@pytest.mark.timeout(240)
@pytest.mark.slow
def test_done_is_done_and_what_fails_says_why(tmp_path: Path, layout: Layout) -> None:
    two = {"mesh": {"dp": 2}}
    assert local.train(job(tmp_path / "text", **two), layout, Seen(), print).model == "coder@1"
    again = local.train(job(tmp_path / "text", **two), layout, Seen(), print)
    assert (again.phase, again.model, again.step) == ("succeeded", "coder@1", 6)
    with pytest.raises(ConflictError, match="job `tiny` has trained a model from another spec"):
        local.train(job(tmp_path / "text", steps=7, **two), layout, Seen(), print)
    assert not layout.job("tiny").attempt(3).root.exists()
    layout.cluster.write_text("{}")  # a control module has the registry
    late = local.train(job(tmp_path / "text", name="late", steps=9999, max_runtime=0.01), layout, Seen(), print)
    assert late.phase == "failed" and "max_runtime is 0 s" in late.reason
    with_cluster = local.train(job(tmp_path / "text", **two), layout, Seen(), print)
    assert with_cluster.model is None and Path(with_cluster.path).is_dir()


@pytest.mark.timeout(240)
@pytest.mark.slow
def test_a_process_that_is_killed_is_a_failure_and_is_tried_again(tmp_path: Path, layout: Layout) -> None:
    attempts: list[int] = []
    said: list[str] = []

    def kill(job: JobView, rows: list[MetricsRow]) -> None:
        if rows and job.attempt not in attempts and len(attempts) < 2:
            attempts.append(job.attempt)
            for child in multiprocessing.active_children():
                child.kill()

    two: dict[str, Any] = {"steps": 400, "mesh": {"dp": 2}}
    failed = local.train(job(tmp_path / "text", retries=0, **two), layout, kill, said.append)
    assert failed.phase == "failed" and "ended with signal 9" in failed.reason and said == []
    done = local.train(job(tmp_path / "text", retries=1, **two), layout, kill, said.append)
    assert (done.phase, done.step, done.attempt, attempts) == ("succeeded", 400, 3, [1, 2])
    assert len(said) == 1 and said[0].startswith("attempt 2: rank 0 ended with signal 9")
    assert said[0].endswith("retry 1 of 1 in 2 s")


@pytest.mark.parametrize(
    ("ends", "retries", "phase", "number"),
    [
        (["lost", "lost", "done"], 2, "succeeded", 3),
        (["lost", "lost", "done"], 1, "failed", 2),
        (["bad data", "done"], 2, "failed", 1),
        (["stopped", "done"], 2, "failed", 1),
    ],
)
def test_so_often_as_the_job_says_and_where_it_may_help(
    tmp_path: Path,
    layout: Layout,
    monkeypatch: pytest.MonkeyPatch,
    ends: list[str],
    retries: int,
    phase: str,
    number: int,
) -> None:
    left, pauses = iter(ends), list[float]()

    def end(run: Any, number: int, watch: Any, report: Any) -> dict[str, Any]:
        how = next(left)
        if how == "stopped":
            run.attempt.stop.touch()
        what = {"phase": "succeeded" if how == "done" else "failed", "retry": how != "bad data"}
        return what | {"error": how, "step": 3, "metrics": {}}

    monkeypatch.setattr(local, "_carried_out", end)
    monkeypatch.setattr(local.time, "sleep", pauses.append)
    ended = local.train(job(tmp_path / "text", retries=retries), layout, Seen(), print)
    assert (ended.phase, ended.attempt) == (phase, number) and pauses == [2.0, 4.0][: number - 1]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": {"path": "/nowhere/at/all"}}, NotFoundError, "`/nowhere/at/all` does not exist on this machine"),
        ({"model": {"ref": "coder@3"}}, NotFoundError, "no model `coder@3`: found none of that name"),
        ({"resources": {"memory": "1MiB"}}, UsageError, "this does not fit"),
        ({"secrets": {"KEY": "env:NOT_SET_ANYWHERE"}}, None, "`env:NOT_SET_ANYWHERE` is not set"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    tmp_path: Path, layout: Layout, changes: dict[str, Any], error: type[LlmosError] | None, message: str
) -> None:
    spec = job(tmp_path / "text", **changes)
    if error is None:
        failed = local.train(spec, layout, Seen(), print)
        assert failed.phase == "failed" and message in failed.reason
        return
    with pytest.raises(error, match=message.replace("(", r"\(")):
        local.train(spec, layout, Seen(), print)
    assert not layout.root.exists()


def test_two_do_not_train_the_same_job(tmp_path: Path, layout: Layout) -> None:
    dirs = layout.job("tiny")
    dirs.root.mkdir(parents=True)
    with (dirs.root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConflictError, match="`tiny` is being trained on this machine already"):
            local.train(job(tmp_path / "text", mesh=Mesh().model_dump()), layout, Seen(), print)
