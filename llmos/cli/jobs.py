"""``llmos submit train logs cancel wait``: training jobs."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmos.cli import estimate, local
from llmos.cli.output import (
    Format,
    Output,
    age,
    client,
    columns,
    first_line,
    note,
    phase,
    plain,
    say,
    say_json,
)
from llmos.cli.progress import headline, watching
from llmos.errors import UsageError

if TYPE_CHECKING:
    from llmos.client import Client
    from llmos.spec import Job as JobSpec
    from llmos.spec import Spec
    from llmos.views import JobView, View

app = typer.Typer()
PANEL = "Jobs"
LAST_LINES = 15  # of a failed job's log: usually holds the exception

Job = Annotated[str, typer.Argument(metavar="JOB", help="a job's id, or a name for its newest job")]
Jobs = Annotated[list[str], typer.Argument(metavar="JOB", help="ids, or names for their newest jobs")]
File = Annotated[str, typer.Argument(metavar="FILE", help="a YAML spec; - reads it from stdin")]
OfTenant = Annotated[
    str | None, typer.Option("--tenant", help="whose job it is; another than the key's needs an admin's key")
]
AllowPending = Annotated[
    bool, typer.Option("--allow-pending", help="submit it also if it could never start on this cluster as it is")
]
Timeout = Annotated[float | None, typer.Option("--timeout", min=0, metavar="SECONDS", help="give up waiting after")]


@app.command(rich_help_panel=PANEL)
def submit(
    file: File, tenant: OfTenant = None, allow_pending: AllowPending = False, output: Output = Format.TABLE
) -> None:
    """Submit every spec of a file – jobs are queued, Services served, Tenants created – and return at once."""
    specs, cluster = [_of(tenant, spec) for spec in _read(file)], client()
    done: list[tuple[str, View]] = []
    queue: Callable[[Spec], View] = partial(cluster.submit, allow_pending=allow_pending)
    others: dict[str, Callable[[Spec], View]] = {"Service": cluster.serve, "Tenant": cluster.put_tenant}
    try:
        for spec in specs:
            view = others.get(spec.kind, queue)(spec)
            done.append((spec.kind, view))
    finally:  # if the second of two is refused, the first is submitted all the same: say so
        if output is Format.JSON:
            say_json([{"kind": kind, **view} for kind, view in done])
        elif done:
            say(
                columns(
                    ("KIND", "ID", "PHASE"),
                    [(kind, view.get("id", view.name), phase(view.get("phase", "-"))) for kind, view in done],
                )
            )


@app.command(rich_help_panel=PANEL)
def train(
    file: File,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="change a field, as in optimizer.learning_rate=3e-4; repeatable"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print mesh, memory, tokens, steps and time; submit nothing")
    ] = False,
    here: Annotated[
        bool, typer.Option("--local", help="train on this machine: no cluster; the same command again goes on")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="trace some steps (default: 5 to 7) and draw every rank's time")
    ] = False,
    allow_pending: AllowPending = False,
    output: Output = Format.TABLE,
) -> None:
    """Submit one job and watch it until it has ended; with --local, train it on this machine."""
    from llmos.spec import TrainFunction, TrainJob

    specs = _read(file)
    if len(specs) != 1 or not isinstance(specs[0], TrainJob | TrainFunction):
        raise UsageError(
            f"{file} holds {', '.join(spec.kind for spec in specs)}: expected one job",
            hint=f"for several, use `llmos submit {file}`",
        )
    settings = [*(settings or []), *(["profile={}"] if profile and getattr(specs[0], "profile", None) is None else [])]
    spec = _changed(specs[0], settings) if settings else specs[0]
    if dry_run:
        if not isinstance(spec, TrainJob):
            what = f"--dry-run knows what a TrainJob takes: {file} holds a {spec.kind}, whose function decides that"
            raise UsageError(what, param="--dry-run")
        return estimate.dry_run(spec, output, here)
    ended = local.train(spec) if here else _submitted(client(), spec, allow_pending)
    say_json(ended) if output is Format.JSON else say(_table([ended]))
    _exit_unless_all_succeeded([ended])


@app.command(rich_help_panel=PANEL)
def logs(
    job: Job,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the job has ended")] = False,
) -> None:
    """Print what a job has written, all its ranks and attempts."""
    for line in client().logs(job, follow):
        say(plain(line) if sys.stdout.isatty() else line)


@app.command(rich_help_panel=PANEL)
def cancel(jobs: Jobs) -> None:
    """End jobs. Their logs and checkpoints stay."""
    cluster = client()
    for job in jobs:
        note(f"job {cluster.cancel(job).id} is being cancelled")


@app.command(rich_help_panel=PANEL)
def wait(jobs: Jobs, timeout_s: Timeout = None, output: Output = Format.TABLE) -> None:
    """Wait until jobs have ended. Exit code 1 if one of them did not succeed."""
    cluster = client()
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    ended = [_wait(cluster, job, deadline) for job in jobs]
    say_json(ended) if output is Format.JSON else say(_table(ended))
    _exit_unless_all_succeeded(ended)


def _read(file: str) -> list[Spec]:
    from llmos.sources import anchored, specs
    from llmos.spec import load

    if file == "-":
        return [anchored(spec, Path.cwd()) for spec in load(sys.stdin.read(), source="standard input")]
    return specs(Path(file))


def _changed(spec: JobSpec, settings: list[str]) -> JobSpec:
    """``spec`` with ``settings``; relative paths among them belong to the current directory."""
    from llmos.sources import anchored, override
    from llmos.spec import TrainFunction, TrainJob

    changed = anchored(override(spec, settings), Path.cwd())
    assert isinstance(changed, TrainJob | TrainFunction)
    return changed


def _of(tenant: str | None, spec: Spec) -> Spec:
    """``spec``, if it is a job, as one of ``tenant``, if that was named."""
    return spec if tenant is None or spec.kind in ("Service", "Tenant") else spec.model_copy(update={"tenant": tenant})


def _submitted(cluster: Client, spec: JobSpec, allow_pending: bool) -> JobView:
    """The job as it ended."""
    job = cluster.submit(spec, allow_pending=allow_pending)
    note(f"job {job.id} is submitted")
    ended = _wait(cluster, job.id, None)
    if ended.model:
        note(f"serve it with `llmos serve {ended.model}`")
    return ended


def _wait(cluster: Client, job: str, deadline: float | None) -> JobView:
    """The ended job. Ctrl-C leaves the job alone and says how to come back to it."""
    timeout_s = None if deadline is None else max(0.0, deadline - time.monotonic())
    try:
        with watching() as progress:
            view = cluster.wait(job, timeout_s, progress)
    except KeyboardInterrupt:
        note(f"\njob {job} goes on: come back with `llmos wait {job}`, end it with `llmos cancel {job}`")
        raise
    if not view.succeeded:
        tail = deque(cluster.logs(view.id), LAST_LINES)
        note(
            "\n".join(
                [
                    f"job {view.id} {headline(view)}",
                    *([f"last lines of its log (`llmos logs {view.id}`):"] if tail else []),
                    *(f"  {plain(line)}" for line in tail),
                ]
            )
        )
    return view


def _exit_unless_all_succeeded(ended: list[JobView]) -> None:
    if not all(job.succeeded for job in ended):
        raise typer.Exit(1)


def _table(found: list[JobView]) -> str:
    header = ("ID", "PHASE", "STEP", "LOSS", "TOKENS/S", "AGE", "TOOK", "MODEL", "REASON")
    return columns(header, map(_row, found))


def _row(job: JobView) -> tuple[str, ...]:
    metrics = job.metrics or {}
    loss, tokens_per_s = metrics.get("loss"), metrics.get("tokens_per_s")
    return (
        job.id,
        phase(job.phase),
        f"{job.step}/{job.steps}",
        "-" if loss is None else f"{loss:.3f}",
        "-" if tokens_per_s is None else f"{tokens_per_s:,.0f}",
        age(job.created_at),
        age(job.started_at, job.ended_at),
        job.model or "-",
        first_line(job.reason or ""),
    )
