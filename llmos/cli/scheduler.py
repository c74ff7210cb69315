"""``llmos jobs describe explain queue drain``: who runs, who waits for what, and which nodes take work."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.cli.output import (
    Format,
    Output,
    age,
    block,
    client,
    clock,
    columns,
    duration,
    fields,
    first_line,
    folded,
    note,
    phase,
    plain,
    rough,
    say,
    say_json,
    yaml_block,
)
from llmos.cli.progress import Pace
from llmos.cli.telemetry import telemetry

if TYPE_CHECKING:
    from llmos.views import JobView, View

app = typer.Typer()
PANEL = "Jobs"

Job = Annotated[str, typer.Argument(metavar="JOB", help="a job's id, or a name for its newest job")]
Tenant = Annotated[str | None, typer.Option("--tenant", "-t", help="only what belongs to this tenant")]


@app.command(rich_help_panel=PANEL)
def jobs(
    tenant: Tenant = None,
    state: Annotated[
        str | None, typer.Option("--state", "-s", help="only jobs that are queued, running, failed, …")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """List the jobs, newest first: whose they are, what they hold or ask for, when they start and why not yet."""
    found = client().jobs(tenant, state)
    if output is Format.JSON:
        return say_json(found)
    if not found:
        return note("no such jobs" if tenant or state else "no jobs yet: submit one with `llmos train FILE`")
    header = ("ID", "PHASE", "TENANT", "GANG", "STEP", "AGE", "ETA", "NOTE")
    say(columns(header, map(_job, found)))


@app.command(rich_help_panel=PANEL)
def describe(job: Job, output: Output = Format.TABLE) -> None:
    """Show a job, where it runs or why it waits, its spec, and the timeline of what happened to it and why."""
    cluster = client()
    view = cluster.describe(job)
    if output is Format.JSON:
        return say_json(view)
    pace = Pace()
    pace.add(cluster.metrics(view.id))
    pairs = [
        ("job", view.id),
        ("name", view.name),
        ("phase", f"{phase(view.phase)}  {first_line(view.reason or '')}"),
        ("tenant", f"{plain(view.tenant)}, priority {view.priority}"),
        ("asks for", plain(view.gang["text"])),
        ("after", plain(", ".join(view.after))),
        ("runs on", plain(", ".join(view.nodes))),
        *_waits(view),
        ("step", f"{view.step} of {view.steps}  {pace.summary(view.steps)}"),
        ("attempts", str(view.attempts)),
        ("submitted", f"{clock(view.created_at)}  ({age(view.created_at)} ago)"),
        ("took", age(view.started_at, view.ended_at) if view.started_at else ""),
        ("model", view.model or ""),
        *telemetry(view.metrics or {}),
        ("directory", plain(view.get("directory", ""))),
        ("files", plain("  ".join(view.get("files", ())))),
    ]
    say(fields(pairs))
    say(f"spec\n{yaml_block(view.spec)}")
    say("events")
    told = [(f"{clock(event['at'])}  {plain(event['what'])}", event["why"]) for event in view.events]
    say(fields([(what, block(why, "      ") or " ") for what, why in told], indent="  "))


@app.command(rich_help_panel=PANEL)
def explain(job: Job, output: Output = Format.TABLE) -> None:
    """Say why a job waits, and what would let it start now: the plan is asked with one thing changed at a time."""
    view = client().explain(job)
    if output is Format.JSON:
        return say_json(view)
    say(folded(f"{view.id} ({view.phase}): {first_line(view.reason)}", ""))
    if view.error:
        note(f"the cluster is not seen at present: {first_line(view.error)}")
    if view.phase != "queued":
        return None
    say(fields([*_waits(view), ("next release", _release(view.next_release))]))
    if view.ways:
        say("it would start")
        say("\n".join(folded(plain(way["text"]), "    ").replace("    ", "  – ", 1) for way in view.ways))
    elif view.trials:
        say("nothing that was tried would let it start now")
    note(f"plans tried: {view.trials}" + (f"; {view.limited}" if view.limited else ""))


@app.command(rich_help_panel=PANEL)
def queue(
    tenant: Tenant = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="show so many")] = 50,
    output: Output = Format.TABLE,
) -> None:
    """Show who waits, in the order of their turns, with why and until when."""
    view = client().queue(tenant, limit)
    if output is Format.JSON:
        return say_json(view)
    if view.jobs:
        say(columns(("TURN", "JOB", "TENANT", "PRIORITY", "GANG", "ETA", "REASON"), map(_turn, view.jobs)))
    else:
        note("nobody waits")
    if view.total > len(view.jobs):
        note(f"{len(view.jobs):,} of {view.total:,}; more with --limit")
    for why in _closed(view):
        note(why)
    if view.error:
        note(f"the cluster is not seen at present: {first_line(view.error)}")


@app.command(rich_help_panel="Cluster")
def drain(
    node: Annotated[str, typer.Argument(metavar="NODE", help="a node's id, or the beginning of it: `llmos status`")],
    undo: Annotated[bool, typer.Option("--undo", help="let it take work again")] = False,
    why: Annotated[str, typer.Option("--why", help="a reason, for those who will wonder")] = "",
    output: Output = Format.TABLE,
) -> None:
    """Have a node take no new work: its jobs go on elsewhere. The same again shows what is left on it."""
    cluster = client()
    view = cluster.undrain(node) if undo else cluster.drain(node, why)
    if output is Format.JSON:
        return say_json(view)
    services = f"{', '.join(view.services)}: replicas stay until their service is removed" if view.services else ""
    since = f" (since {clock(view.since)})" if view.drained else ""
    pairs = [
        ("node", view.id),
        ("state", f"takes no new work{since}" if view.drained else "takes work"),
        ("why", plain(view.why)),
        ("jobs", plain(", ".join(view.jobs)) or "none"),
        ("services", plain(services)),
    ]
    say(fields(pairs))


def _job(job: JobView) -> tuple[str, ...]:
    metrics = job.metrics or {}
    loss, tokens_per_s = metrics.get("loss"), metrics.get("tokens_per_s")
    pace = [] if loss is None else [f"loss {loss:.3f}"]
    pace += [] if tokens_per_s is None else [f"{tokens_per_s:,.0f} tokens/s"]
    made = f"{job.model} in {age(job.started_at, job.ended_at)}" if job.model else ""
    return (
        job.id,
        phase(job.phase),
        plain(job.tenant),
        _gang(job.gang),
        f"{job.step}/{job.steps}",
        age(job.created_at),
        _eta(job.estimated_start),
        made or first_line(job.reason or "") or (" · ".join(pace) if job.phase == "running" else ""),
    )


def _turn(job: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{job['turn']:,}",
        job["id"],
        plain(job["tenant"]),
        str(job["priority"]),
        _gang(job["gang"]),
        _eta(job["estimated_start"]),
        first_line(job["reason"]),
    )


def _gang(gang: dict[str, Any]) -> str:
    """``8×1 GPU``: so many bundles of so much, of what is scarcest."""
    count = max(gang["bundles"], 1)
    kind = "GPU" if gang["gpus"] else "CPU"
    return f"{count}×{(gang['gpus'] or gang['cpus']) / count:g} {kind}"


def _eta(estimate: dict[str, float] | None) -> str:
    """``5m–2h``: in so long as likely as not, and nine times of ten at the latest."""
    if not estimate:
        return "-"
    likely, late = (rough(estimate[name] - time.time()) for name in ("p50", "p90"))
    return likely if likely == late else f"{likely}–{late}"


def _waits(view: View) -> list[tuple[str, str]]:
    """The place of a job that waits, when it is to start, and the nodes that take no work meanwhile."""
    if view.phase != "queued":
        return []
    turn = f", turn {view.turn:,} of all" if view.get("turn") else ""
    place = f"place {view.place:,} in the queue of its tenant{turn}" if view.get("place") else ""
    closed = "; ".join(_closed(view)) if "quarantined" in view else ""
    return [("queue", place), ("starts", _expected(view.estimated_start)), ("closed", closed)]


def _expected(estimate: dict[str, float] | None) -> str:
    if not estimate:
        return "not known: nothing says how long what is before it runs"
    likely, late = estimate["p50"], estimate["p90"]
    times = f"{clock(likely)} as likely before as after, {clock(late)} nine times of ten"
    return f"in {duration(likely - time.time())} to {duration(late - time.time())} ({times})"


def _release(release: dict[str, Any] | None) -> str:
    return f"in {duration(release['at'] - time.time())} by {release['job']}" if release else ""


def _closed(view: View) -> list[str]:
    """Each node that takes no work, and why."""
    drained = [f"node {node[:12]} is drained{f': {plain(why)}' if why else ''}" for node, why in view.drained.items()]
    return [f"node {node[:12]} is in quarantine: {plain(why)}" for node, why in view.quarantined.items()] + drained
