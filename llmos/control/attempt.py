"""The attempt protocol: what the files of an attempt's directory say, and who may write them when.

Whoever runs an attempt claims it first (``started``, created with O_EXCL) and ends it by writing ``result.json`` in one
step. So what happened can be told from the directory and whether its process lives, also after a crash of either side.
``docs/architecture.md`` has the table.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from llmos.control.secrets import resolve
from llmos.core.types import Attempt, AttemptPhase
from llmos.errors import LlmosError
from llmos.files import read_json, sync_directory, write_json
from llmos.layout import AttemptDirs, JobDirs
from llmos.redact import Redactor

_TAIL_BYTES = 4096


def claim(dirs: AttemptDirs, session: str) -> bool:
    """Become the one runner of the attempt, in Ray session ``session``. False if it has had a runner already."""
    dirs.root.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(dirs.started, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        file.write(session)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(dirs.root)
    return True


def finish(dirs: AttemptDirs, result: Mapping[str, Any]) -> None:
    """Write how the attempt ended. Nothing of the attempt may happen after this."""
    write_json(dirs.result, result)


def carry_out(dirs: JobDirs, number: int, train: Callable[[Mapping[str, str]], Mapping[str, Any]]) -> dict[str, Any]:
    """The result of attempt ``number``: what ``train`` returns, given the job's secrets by variable.

    What it raised becomes a result, and a line in the attempt's log: without the job's secrets, both.
    """
    secrets: dict[str, str] = {}
    try:
        secrets = resolve(read_json(dirs.spec).get("secrets") or {})
        return dict(train(secrets))
    except BaseException as error:
        redactor, result = Redactor(secrets.values()), failure(error)
        report, log = redactor.redact(_report(error)), dirs.attempt(number).log
        with suppress(OSError), open(log, "a+", encoding="utf-8", errors="replace") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            if report.splitlines()[0] not in file.read():  # or the rank that it is from has said it
                file.write(report)
        return {**result, "error": redactor.redact(result["error"])}


def failure(error: BaseException) -> dict[str, Any]:
    """The result of an attempt that ended with ``error``.

    What the caller must put right (a 4xx leaf: bad data, a broken model, a bad spec) fails again however often it is
    tried; everything else deserves the job's retries.
    """
    retry = not (isinstance(error, LlmosError) and 400 <= error.http_status < 500)
    told = [error.message, error.hint] if isinstance(error, LlmosError) else [str(error).strip()]
    text = "; ".join(part for part in told if part) or type(error).__name__  # shown in tables: on one line if it can be
    return {"phase": "failed", "error": text, "retry": retry, "step": 0, "metrics": {}}


def ask_to_stop(dirs: AttemptDirs) -> None:
    """Ask the attempt to checkpoint and yield. The file's age is how long ago it was asked."""
    dirs.root.mkdir(parents=True, exist_ok=True)
    dirs.stop.touch(exist_ok=True)


def look(job: str, number: int, dirs: AttemptDirs, *, alive: bool, session: str) -> Attempt:
    """The attempt as its directory and its process (``alive``) show it, seen from Ray session ``session``."""
    result = read_json(dirs.result)
    started = _text(dirs.started)
    if result is not None:
        phase, error = AttemptPhase(result["phase"]), str(result.get("error", ""))
        return Attempt(job, number, phase, error=error, retry=bool(result.get("retry", True)))
    if alive:
        phase = AttemptPhase.STARTING if started is None else AttemptPhase.RUNNING
        return Attempt(job, number, phase, stopping_since=_asked_at(dirs))
    if started is None:
        return Attempt(job, number, AttemptPhase.ABSENT)
    if started != session:  # the whole cluster was taken down: nobody's fault, so it must not use up a retry
        return Attempt(job, number, AttemptPhase.YIELDED)
    return Attempt(job, number, AttemptPhase.LOST, stopping_since=_asked_at(dirs))


def _text(path: os.PathLike[str]) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _asked_at(dirs: AttemptDirs) -> float | None:
    try:
        return dirs.stop.stat().st_mtime
    except FileNotFoundError:
        return None


def _report(error: BaseException) -> str:
    """What the job's log says about ``error``: the message for the expected, the traceback for the rest."""
    if failure(error)["retry"]:
        return "".join(traceback.format_exception(error))
    return f"error: {error}\n"
