"""What the Ray adapter does when something under it fails. No cluster needed: the failures are played."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, OutOfMemoryError
from ray.train.v2.api.exceptions import WorkerGroupError

from llmos import errors
from llmos.control import attempt
from llmos.control.ray import attempts, head
from llmos.control.ray.processes import MARKER, Process
from llmos.errors import ClusterError
from llmos.files import write_json
from llmos.layout import Layout
from llmos.train import worker

ADDRESS = "127.0.0.1:9"


Sleeper = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str, **environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "import time; time.sleep(60)", *words]
        started.append(subprocess.Popen(command, env={**os.environ, **environment}))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "error", [GetTimeoutError("slow"), ActorDiedError(), ClusterError("gone"), KeyboardInterrupt()], ids=repr
)
def test_down_ends_its_cluster_whomever_it_cannot_ask_and_no_stranger(
    error: BaseException,
    sleeper: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, orphan, stranger = sleeper(), sleeper(**{MARKER: "this"}), sleeper("--address", ADDRESS)
    process = Process.of(ours.pid)
    known = {"process": {"pid": process.pid, "started": process.started}, "session": "this", "address": ADDRESS}
    write_json(Layout(tmp_path).cluster, {**known, "port": 9})

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(head, "_attach", fails)
    said: list[str] = []
    head.down(tmp_path, said.append)
    assert None not in (ours.wait(5), orphan.wait(5)) and stranger.poll() is None
    assert "everything that was started here has ended" in said[-1] and len(said) == 2
    assert not Layout(tmp_path).cluster.exists()


def test_an_attempt_on_a_full_disk_ends_its_process() -> None:
    code = """if True:
        import time
        from llmos.control.ray import attempts
        def full(*_):
            raise OSError(28, "No space left on device")
        attempts.attempt.claim = full
        attempts.ray.get_runtime_context = lambda: type("Context", (), {"get_session_name": lambda _: "session"})()
        attempts.AttemptActor("/nowhere", "job", 1, ("node",))
        time.sleep(30)
        raise SystemExit("it lives on")"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_worker_that_ray_ended_for_its_memory_is_no_mystery() -> None:
    told = "Task was killed due to the node running low on memory."
    for failure in (OutOfMemoryError("too much"), RuntimeError(told)):
        error = worker._cause(WorkerGroupError("workers failed", {1: failure}))
        assert isinstance(error, errors.OutOfMemoryError) and str(failure).strip() in error.message, error
        assert "micro_batch_size" in error.hint and not attempt.failure(error)["retry"]
    other = worker._cause(WorkerGroupError("workers failed", {1: ActorDiedError()}))
    assert isinstance(other, errors.WorkerLost) and "rank 1 failed" in other.message


def test_why_an_attempt_failed_is_told_without_its_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("hunter2-hunter2")
    job = Layout(tmp_path).job("job-1")
    job.attempt(1).root.mkdir(parents=True)
    write_json(job.spec, {"secrets": {"TOKEN": f"file:{tmp_path}/token"}})

    def entry(_state: str, _job: str, _number: int, _nodes: object, secrets: dict[str, str]) -> None:
        raise ValueError(f"cannot log in with {secrets['TOKEN']}")

    monkeypatch.setattr(attempts, "_entry", lambda: entry)
    result = attempts._result(tmp_path, "job-1", 1, ("node",))
    assert result["error"] == "cannot log in with [redacted]" and result["retry"] is True
    log = job.attempt(1).log.read_text()
    assert "Traceback" in log and "[redacted]" in log and "hunter2" not in log + json.dumps(result)
    assert attempt.failure(ValueError("hunter2"))["error"] == "hunter2"  # it is `_result` that knows the secrets
