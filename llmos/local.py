"""``llmos train SPEC --local``: a job on this machine alone, without the control module and without Ray.

An attempt is what it is on a cluster: a directory that says what happens ("The attempt protocol" in
docs/architecture.md), written by a process that trains and read by whoever watches. Here that is the caller, which
loads no torch. An attempt that fails is followed by another, as often as the job's ``retries`` say; the same job again
goes on from its last checkpoint.
"""

from __future__ import annotations

import fcntl
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from llmos.control import admission, attempt, journal
from llmos.control.capacity import placed
from llmos.control.registry import Registry
from llmos.control.store import Store
from llmos.core.lifecycle import backoff_s
from llmos.errors import ConflictError, NotFoundError
from llmos.files import read_json, write_json
from llmos.layout import AttemptDirs, JobDirs, Layout
from llmos.spec import Job, TrainJob, digest, to_dict
from llmos.train import cause
from llmos.train.run import AnyRun, FunctionRun, Run
from llmos.views import JobView, MetricsRow

POLL_S = 0.2
END_TIMEOUT_S = 10.0
HERE = "on this machine"
SESSION = "local"
"""Whose attempts these are, in the place of a Ray session."""

Report = Callable[[str], None]
OnProgress = Callable[[JobView, list[MetricsRow]], None]


def train(spec: Job, layout: Layout, on_progress: OnProgress, report: Report) -> JobView:
    """Train ``spec`` here and return how it ended; ``on_progress`` sees it and its new metrics rows all the while.

    Ctrl-C asks the ranks to checkpoint and end: the job comes back ``cancelled``; a second one ends them at once and
    raises KeyboardInterrupt, and so does one between two attempts. A job that succeeded has the view's ``path`` (the
    model's directory) and, unless a cluster uses the state directory, ``model``, a version in it. Raises UsageError,
    NotFoundError or ModelError before anything runs, ConflictError when the job is being trained, or was another.
    """
    job = admission.job(to_dict(spec), layout, HERE)
    base = base_model(job, layout) if isinstance(job, TrainJob) else None
    job = placed(job, base) if isinstance(job, TrainJob) else job
    layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    dirs = layout.job(job.name)
    with _alone(dirs, job.name):
        _check_same(job, dirs)
        write_json(dirs.spec, to_dict(job))
        began_at = time.time()
        for failures in itertools.count(1):
            number = next_attempt(dirs)
            attempt.claim(dirs.attempt(number), SESSION)
            run = _run_of(job, base, layout, dirs.attempt(number))
            watch = _Watch(run, number, began_at, on_progress)
            outcome = _carried_out(run, number, watch, report)
            if not _may_go_better(outcome, run) or failures > job.retries:
                return watch.end(outcome, _register(run, layout) if outcome["phase"] == "succeeded" else {})
            wait_s = backoff_s(failures)
            report(f"attempt {number}: {outcome['error']}; retry {failures} of {job.retries} in {wait_s:.0f} s")
            time.sleep(wait_s)
    raise AssertionError("attempts are counted without end")


def _carried_out(run: AnyRun, number: int, watch: _Watch, report: Report) -> dict[str, Any]:
    """How attempt ``number`` ended, in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(run, number), name="llmos-attempt")
    process.start()
    with _ended(process):
        watch.until_end(process, report)
    return _outcome(run, process)


def _may_go_better(outcome: Mapping[str, Any], run: AnyRun) -> bool:
    """Whether another attempt could: bad data stays bad, and whoever asked for the end wants none."""
    return outcome["phase"] == "failed" and outcome.get("retry", True) and not run.attempt.stop.exists()


def _check_same(job: Job, dirs: JobDirs) -> None:
    """Raises ConflictError when another spec of this name has left its model here."""
    lineage = read_json(dirs.export / "lineage.json")
    if lineage is not None and lineage["spec_digest"] != digest(job):
        what = f"job `{job.name}` has trained a model from another spec, which is in {dirs.export}"
        raise ConflictError(what, hint=f"Give the job another name, or delete {dirs.root} to start over.", param="name")


def base_model(job: TrainJob, layout: Layout) -> Path | None:
    """The directory of ``job.model.ref``, without a version its newest one. Raises NotFoundError."""
    return None if job.model.ref is None else registered(job.model.ref, layout)


def registered(ref: str, layout: Layout) -> Path:
    """The directory of ``name@version``, or of the newest version of ``name``. Raises NotFoundError."""
    name, _, version = ref.partition("@")
    there = [int(path.name) for path in (layout.models / name).glob("*") if path.name.isdigit()]
    chosen = int(version) if version else max(there, default=0)
    if chosen not in there:
        known = ", ".join(f"{name}@{v}" for v in sorted(there)) or "none of that name"
        hint = f"See {layout.models}, or name another state directory with LLMOS_STATE_DIR."
        raise NotFoundError(f"no model `{ref}`: found {known}", hint=hint, param="model.ref")
    return layout.model(name, chosen)


def _run_of(job: Job, base: Path | None, layout: Layout, dirs: AttemptDirs) -> AnyRun:
    told = layout.job(job.name), dirs
    if isinstance(job, TrainJob):
        return Run(job, *told, layout.data, base, layout.calibration)
    return FunctionRun.of(job, layout, *told)


def next_attempt(dirs: JobDirs) -> int:
    """The number of the attempt that comes next."""
    return next(number for number in itertools.count(1) if not dirs.attempt(number).root.exists())


class _Watch:
    """What is to be seen of a job, and the wishes of whoever watches it."""

    def __init__(self, run: AnyRun, number: int, began_at: float, on_progress: OnProgress) -> None:
        """``began_at``: when the first of these attempts did, which ``max_runtime`` counts from."""
        self._run, self._number, self._on_progress = run, number, on_progress
        self._began_at, self._metrics, self._late = began_at, dict[str, Any](), ""
        self._step = journal.newest_metrics(run.job_dirs, number - 1).get("step", 0)  # where earlier attempts got

    def until_end(self, process: BaseProcess, report: Report) -> None:
        """Watch until the process has ended. Raises KeyboardInterrupt at the second Ctrl-C."""
        stop = self._run.attempt.stop
        while process.is_alive():
            try:
                self._check_time(stop)
                self._look()
                process.join(POLL_S)
            except KeyboardInterrupt:
                if stop.exists():
                    raise
                stop.touch()
                report("saving a checkpoint after this step; Ctrl-C again ends at once")

    def end(self, outcome: dict[str, Any], model: dict[str, str]) -> JobView:
        """The job as it ended, with its ``model`` and ``path``."""
        phase, reason = outcome["phase"], outcome.get("error", "")
        self._metrics = {**outcome["metrics"], "step": outcome["step"]}
        if phase == "yielded":
            phase = "failed" if self._late else "cancelled"
            reason = self._late or f"stopped after step {outcome['step']}; the same command goes on from there"
        return self._look(phase, reason, time.time(), model)

    def _check_time(self, stop: Path) -> None:
        limit_s, ran_s = self._run.job.max_runtime, time.time() - self._began_at
        if limit_s is not None and ran_s > limit_s and not self._late:
            self._late = f"ran for {ran_s:.0f} s: max_runtime is {limit_s:.0f} s"
            stop.touch()

    def _look(
        self, phase: str = "", reason: str = "", ended_at: float | None = None, model: dict[str, str] | None = None
    ) -> JobView:
        job, metrics = self._run.job, self._metrics
        rows = [MetricsRow(row) for row in journal.read_metrics(self._run.job_dirs, self._number, self._step)]
        if rows:
            self._step, self._metrics = rows[-1].step, dict(rows[-1])
            metrics = metrics | self._metrics
        phase = phase or ("running" if self._run.attempt.metrics.exists() else "starting")
        view = JobView(
            **{"id": job.name, "name": job.name, "phase": phase, "reason": reason, "model": None, "spec": to_dict(job)},
            **{"attempt": self._number, "attempts": self._number, "created_at": self._began_at},
            **{"started_at": self._began_at, "ended_at": ended_at, "steps": job.steps},
            **{"step": max(self._step, metrics.get("step", 0)), "metrics": metrics},
        )
        view.update(model or {})
        self._on_progress(view, rows)
        return view


def _run(run: AnyRun, number: int) -> None:
    """The process that trains, rank 0; the other ranks are its children."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; who watches decides what it means
    with run.attempt.log.open("ab", buffering=0) as log:  # what is printed past Python, too
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    threading.Thread(target=_stop_when_alone, args=(run.attempt.stop,), daemon=True).start()
    attempt.finish(run.attempt, attempt.carry_out(run.job_dirs, number, partial(_trained, run)))


def _trained(run: AnyRun, secrets: Any) -> Any:
    from llmos.train.local import run_attempt  # loads torch

    return run_attempt(run, run.job.placed_mesh.size, secrets)


def _stop_when_alone(stop: Path) -> None:
    """Ask to checkpoint and end once the process that watches is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    stop.touch()


@contextmanager
def _ended(process: BaseProcess) -> Iterator[None]:
    """At the end of the block the process is gone; its ranks follow."""
    try:
        yield
    finally:
        process.terminate()
        process.join(END_TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()


def _outcome(run: AnyRun, process: BaseProcess) -> dict[str, Any]:
    """How the attempt ended; a process that was killed could not say."""
    if (result := read_json(run.attempt.result)) is not None:
        return dict(result)
    if found := cause.left(run.attempt.cause):
        return attempt.failure(found)
    died = f"signal {-process.exitcode}" if process.exitcode and process.exitcode < 0 else f"code {process.exitcode}"
    why = f"rank 0 ended with {died} and left no result; signal 9 is what a machine out of memory sends"
    return {"phase": "failed", "error": why, "step": 0, "metrics": {}}


def _register(run: AnyRun, layout: Layout) -> dict[str, str]:
    """Where the trained model is, and which version it became. A control module has the registry for itself."""
    export = run.job_dirs.export
    if not isinstance(run, Run) or not export.exists():
        return {}
    if layout.cluster.exists():
        return {"path": str(export)}
    store = Store(layout)
    try:
        return {"path": str(export), "model": Registry(layout, store, time.time).adopt(run.job.output.model, export)}
    finally:
        store.close()


@contextmanager
def _alone(dirs: JobDirs, name: str) -> Iterator[None]:
    """Nobody else trains this job here. Raises ConflictError."""
    dirs.root.mkdir(parents=True, exist_ok=True)
    with (dirs.root / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            hint = "Wait for it, or give one of them another name."
            raise ConflictError(f"job `{name}` is being trained {HERE} already", hint=hint, param="name") from None
        yield
