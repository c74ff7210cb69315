"""Jobs on a real cluster: what dies is replaced, what is stopped gives everything back."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

import llmos
from llmos.errors import NotFoundError
from llmos.settings import state_dir
from tests.support import listening, nano, processes, words

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
STEPS = 800  # long enough to be interrupted


def until(what: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "gave up waiting"
        time.sleep(0.1)


def start(cluster: llmos.Client, name: str, workers: int, step: int, **fields: object) -> str:
    """Submit a long job and wait until it has done ``step`` steps."""
    job = cluster.submit(nano(name, workers, STEPS, checkpoint={"every_steps": 50}, **fields)).id
    until(lambda: (cluster.job(job).step or 0) >= step, timeout_s=120)
    return job


def named(kind: str) -> list[psutil.Process]:
    return [process for process in processes(Path.home()) if any(kind in word for word in words(process))]


def nothing_is_held(cluster: llmos.Client) -> bool:
    return all(node[kind]["cpus"] == 0 for node in cluster.status()["nodes"] for kind in ("used", "foreign"))


def scraped(cluster: llmos.Client) -> str:
    """What Prometheus is told."""
    headers = {"Authorization": f"Bearer {cluster.connection.key}"}
    return httpx.get(f"{cluster.connection.url}/metrics", headers=headers).raise_for_status().text


@pytest.mark.parametrize(
    ("victim", "attempts"), [("RayTrainWorker", 1), pytest.param("AttemptActor", 2, marks=pytest.mark.slow)]
)
def test_a_job_goes_on_from_its_checkpoint_when_a_process_of_it_is_killed(
    cluster: llmos.Client, victim: str, attempts: int
) -> None:
    job = start(cluster, "killed", workers=2, step=60)
    named(victim)[0].kill()
    done = cluster.wait(job, timeout_s=120)
    assert (done.phase, done.attempts, done.step) == ("succeeded", attempts, STEPS)
    assert any("resumed" in line and "step" in line for line in cluster.logs(job)), list(cluster.logs(job))
    steps = [row.step for row in cluster.metrics(job)]
    assert steps == list(range(1, STEPS + 1))
    until(lambda: nothing_is_held(cluster))


@pytest.mark.slow
@pytest.mark.timeout(360)
def test_a_job_whose_worker_stands_still_goes_on_in_another_attempt(cluster: llmos.Client) -> None:
    job = start(cluster, "stuck", workers=2, step=60, watchdog={"timeout": "5s"})
    named("RayTrainWorker")[0].suspend()
    done = cluster.wait(job, timeout_s=180)
    assert (done.phase, done.attempts, done.step) == ("succeeded", 2, STEPS)
    (report,) = [event.why for event in cluster.events(job) if "no step has ended for 5 s" in event.why]
    assert "has left no stack: its process hangs or is gone; the others wait in collectives" in report
    assert "in a collective:" in report and "in all_reduce" in report and "retry 1 of 2" in report
    assert any("no step has ended for 5 s" in line for line in cluster.logs(job))
    until(lambda: nothing_is_held(cluster))


def test_a_cancelled_job_gives_everything_back_and_keeps_its_logs(cluster: llmos.Client) -> None:
    job = start(cluster, "cancelled", workers=2, step=10)
    assert listening(Path.home()) <= LOOPBACK
    assert f'llmos_train_loss{{job="{job}"}}' in scraped(cluster)
    cluster.cancel(job)
    assert cluster.wait(job, timeout_s=30).phase == "cancelled"
    assert f'job="{job}"' not in scraped(cluster)
    assert any("step 1/" in line for line in cluster.logs(job))
    until(lambda: nothing_is_held(cluster))
    until(lambda: not named("RayTrainWorker"))  # what holds nothing any more may still be on its way out


def test_a_job_that_runs_too_long_is_stopped_with_the_reason(cluster: llmos.Client) -> None:
    job = cluster.submit(nano("long", 1, 1_000_000, max_runtime="5s")).id
    view = cluster.wait(job, timeout_s=60)
    assert view.phase == "failed" and "max_runtime" in view.reason
    until(lambda: nothing_is_held(cluster))


def test_a_secret_reaches_the_workers_and_no_file(cluster: llmos.Client, tmp_path: Path) -> None:
    value = "s3cr3t-of-this-test-alone"
    (tmp_path / "token").write_text(value)
    secrets = dict.fromkeys(("HUB_TOKEN", "OMP_NUM_THREADS"), f"file:{tmp_path}/token")
    job = cluster.submit(nano("secret", 1, 5, secrets=secrets, retries=0)).id
    view = cluster.wait(job, timeout_s=60)
    # it was there: torch was to compute with so many threads. And nobody is told how many
    assert view.phase == "failed" and "invalid literal" in view.reason and "[redacted]" in view.reason
    log = "\n".join(cluster.logs(job))
    assert "[redacted]" in log and "Traceback" in log and value not in log + view.reason
    (session,) = Path("/tmp/ray").glob("session_latest/logs")
    for directory in (state_dir(None), session):
        for file in directory.rglob("*"):
            assert not (file.is_file() and value.encode() in file.read_bytes()), file
    assert f"file:{tmp_path}/token" in (state_dir(None) / "jobs" / job / "spec.json").read_text()


def test_bad_data_ends_a_job_at_once_and_says_what_was_expected(cluster: llmos.Client, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "empty.txt").write_bytes(b"")
    for data, said in (("latin.txt", "UTF-8"), ("empty.txt", "empty")):
        view = cluster.wait(cluster.submit(on(tmp_path / data)).id, timeout_s=60)
        assert (view.phase, view.attempts) == ("failed", 1)
        assert said in view.reason and str(tmp_path / data) in view.reason
        assert not any("Traceback" in line for line in cluster.logs(view.id))
    with pytest.raises(NotFoundError, match=r"missing\.txt` does not exist"):
        cluster.submit(on(tmp_path / "missing.txt"))


def on(path: Path) -> llmos.TrainJob:
    return nano("bad", 1, 5).model_copy(update={"data": llmos.Data(path=(str(path),), vocab_size=320)})


def test_workers_that_cannot_join_fail_the_job_and_hold_nothing(cluster: llmos.Client) -> None:
    spec = nano("lonely", workers=2, steps=5, env={"GLOO_DEVICE_TRANSPORT": "NOPE"}, retries=0)
    view = cluster.wait(cluster.submit(spec).id, timeout_s=60)
    assert view.phase == "failed" and "unsupported gloo device" in view.reason and "\n" not in view.reason
    until(lambda: nothing_is_held(cluster))
