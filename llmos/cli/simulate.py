"""``llmos simulate``: the twin. Traces replayed in virtual time, under our policies and those of others."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.cli import rehearse
from llmos.cli.output import Format, Output, columns, duration, note, say, say_json
from llmos.cli.rehearse import Picture, save_picture, yaml_of
from llmos.errors import UsageError
from llmos.sim import PLACING, SCHEDULING

if TYPE_CHECKING:
    from llmos.sim.job_replay import Stay
    from llmos.sim.openb_replay import Outcome
    from llmos.sim.tables import Table

app = typer.Typer()
simulate = typer.Typer(help="Replay traces on a cluster that exists only as numbers.", no_args_is_help=True)
app.add_typer(simulate, name="simulate", rich_help_panel="Planning")
simulate.command("plan")(rehearse.simulate_plan)

Json = Annotated[bool, typer.Option("--json", help="the same as -o json")]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="go on without the malformed rows of a trace")]
Nodes = Annotated[Path, typer.Option("--nodes", metavar="FILE", help="CSV: sn,cpu_milli,memory_mib,gpu,model")]
Pods = Annotated[
    Path, typer.Option("--pods", metavar="FILE", help="CSV: name,cpu_milli,memory_mib,num_gpu,gpu_milli,…")
]
Placing = Annotated[list[str] | None, typer.Option("--policy", help=f"{', '.join(PLACING)}; may be repeated")]
Inflate = Annotated[float, typer.Option("--inflate", min=0.01, max=100, help="GPUs asked for, over those there are")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, max=1000, metavar="N", help="replays, with seeds from 0")]
Trace = Annotated[
    Path | None, typer.Option("--trace", metavar="FILE", help="CSV: timestamp,duration,num_gpus,gpu_time,cluster")
]
Gpus = Annotated[int, typer.Option("--gpus", min=1, metavar="N", help="of the cluster")]
PerNode = Annotated[int, typer.Option("--per-node", min=1, metavar="N", help="GPUs of a node")]
Scheduling = Annotated[list[str] | None, typer.Option("--policy", help=f"{', '.join(SCHEDULING)}; may be repeated")]
Jobs = Annotated[int, typer.Option("--jobs", min=1, metavar="N", help="without a trace: how many")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="of what goes wrong, and of a trace that is made up")]
FailuresPerDay = Annotated[float, typer.Option("--failures-per-day", min=0, help="nodes lost, of all the cluster")]
LaunchFailures = Annotated[float, typer.Option("--launch-failures", min=0, max=0.9, help="share of launches that fail")]
StuckPerDay = Annotated[float, typer.Option("--stuck-per-day", min=0, help="how often a running job gets stuck")]
Stragglers = Annotated[float, typer.Option("--stragglers", min=0, max=1, help="share of attempts that are slow")]
LaunchS = Annotated[float, typer.Option("--launch-s", min=0, help="seconds that a launch takes, on average")]


@simulate.command("openb")
def simulate_openb(
    nodes: Nodes,
    pods: Pods,
    policy: Placing = None,
    inflate: Inflate = 1.3,
    seeds: Seeds = 10,
    skip_bad_rows: SkipBadRows = False,
    as_json: Json = False,
    output: Output = Format.TABLE,
) -> None:
    """Pack the pods of Alibaba's GPU trace onto its nodes, one by one, and say what share of the GPUs is given out."""
    from llmos.sim import openb, openb_replay

    machines = _rows(openb.read_nodes(nodes, skip_bad_rows=skip_bad_rows), nodes)
    replay = openb_replay.Replay(machines, _rows(openb.read_pods(pods, skip_bad_rows=skip_bad_rows), pods))
    names = _known(policy or ["llmos"], PLACING)
    found = {name: [replay.run(name, inflate, seed) for seed in range(seeds)] for name in names}
    if as_json or output is Format.JSON:
        return say_json({"inflate": inflate, "policies": {name: _openb_view(runs) for name, runs in found.items()}})
    header = ("POLICY", "ALLOCATED", "SD", "FRAGMENTED", "PODS", "DROPPED")
    say(columns(header, [(name, *_openb_cells(openb_replay.report(runs))) for name, runs in found.items()]))
    note(f"{len(machines)} nodes, demand {inflate:.0%} of the GPUs, mean of {seeds} seeds")


def _openb_view(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    from llmos.sim.openb_replay import report

    seeds = [{"seed": outcome.seed, "allocated_pct": outcome.allocated_pct} for outcome in outcomes]
    return {**report(outcomes), "seeds": seeds}


def _openb_cells(report: Mapping[str, float]) -> tuple[str, ...]:
    allocated, fragmented = f"{report['allocated_pct']:.2f} %", f"{report['fragmented_pct']:.2f} %"
    return (
        allocated,
        f"{report['allocated_pct_sd']:.2f}",
        fragmented,
        f"{report['arrived']:.0f}",
        f"{report['dropped']:.0f}",
    )


def _rows(table: Table[Any], path: Path) -> Sequence[Any]:
    """The rows of ``table``, having said which were skipped. Raises UsageError when there are none."""
    from llmos.sim.tables import said

    if table.bad:
        note(f"warning: {path}: skipped {said(table.bad)}")
    if not table.rows:
        raise UsageError(f"{path} has no rows: expected a trace")
    return table.rows


def _known(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """``names``, each once. Raises UsageError for one that is not known."""
    for name in names:
        if name not in known:
            raise UsageError(f"no policy `{name[:40]}`: expected one of {', '.join(known)}", param="--policy")
    return list(dict.fromkeys(names))


@simulate.command("jobs")
def simulate_jobs(
    trace: Trace = None,
    gpus: Gpus = 512,
    per_node: PerNode = 8,
    policy: Scheduling = None,
    jobs: Jobs = 80_000,
    seed: Seed = 0,
    failures_per_day: FailuresPerDay = 0.0,
    launch_failures: LaunchFailures = 0.0,
    stuck_per_day: StuckPerDay = 0.0,
    stragglers: Stragglers = 0.0,
    launch_s: LaunchS = 0.0,
    picture: Picture = None,
    skip_bad_rows: SkipBadRows = False,
    as_json: Json = False,
    output: Output = Format.TABLE,
) -> None:
    """Run a trace of jobs, or one that is made up, in virtual time, and say how long jobs took and why."""
    from llmos.sim import job_report, job_traces, scheduling
    from llmos.sim.faults import Faults

    names = _known(policy or ["llmos"], SCHEDULING)
    if picture and len(names) > 1:
        raise UsageError("a picture is of one policy: expected one --policy", param="--picture")
    if trace:
        coming = _rows(job_traces.read_jobs(trace, skip_bad_rows=skip_bad_rows), trace)
    else:
        coming = job_traces.generate(seed, jobs=jobs, days=jobs * job_traces.DAYS / job_traces.JOBS, gpus=gpus)
    faults = Faults(seed, failures_per_day, launch_failures, stuck_per_day, stragglers, launch_s)
    found = {}
    for name in names:
        began = time.perf_counter()
        runs, world = scheduling.schedule(coming, name, gpus, per_node, faults)
        found[name] = job_report.report(runs, world) | {"wall_s": time.perf_counter() - began}
        if picture:
            _write(picture, world.stays, gpus // per_node, per_node, f"{name}: {len(coming)} jobs on {gpus} GPUs")
    if as_json or output is Format.JSON:
        return say_json({"gpus": gpus, "per_node": per_node, "policies": found})
    _say_jobs(found, f"{len(coming)} jobs on {gpus} GPUs, {per_node} a node; {_source(trace, seed)}")


def _say_jobs(found: Mapping[str, Mapping[str, float | None]], about: str) -> None:
    """The table of all policies, and how good their estimates were."""
    say(columns(("POLICY", *_JOB_COLUMNS), [(name, *_job_cells(report)) for name, report in found.items()]))
    note(about)
    for name, report in found.items():
        if report["p90_estimates"]:
            kept, of = _percent(report["p90_calibration_pct"]), report["p90_estimates"]
            note(f"{name}: of {of:.0f} jobs that waited, {kept} began before the time that was said for nine in ten")


def _source(trace: Path | None, seed: int) -> str:
    return f"{trace}" if trace else f"a trace made up from seed {seed}"


def _write(path: Path, stays: Sequence[Stay], nodes: int, per_node: int, title: str) -> None:
    """Draw what ran where. Raises UsageError if the picture cannot be written."""
    from llmos.sim.picture import picture

    save_picture(path, picture(stays, nodes, per_node, title))


_JOB_COLUMNS = (
    "JCT",
    "P50",
    "P99",
    "QUEUED",
    "USED",
    "FRAGMENTED",
    "FAIRNESS",
    "PREEMPTED",
    "FAILED",
    "LOST",
    "P90 KEPT",
)


def _job_cells(report: Mapping[str, float | None]) -> tuple[str, ...]:
    times = ("jct_s_mean", "jct_s_p50", "jct_s_p99", "queued_s_mean")
    return (
        *("-" if (took_s := report[name]) is None else duration(took_s) for name in times),
        _percent(report["utilisation_pct"]),
        _percent(report["fragmentation_pct"]),
        "-" if report["fairness"] is None else f"{report['fairness']:.3f}",
        f"{report['preemptions']:.0f}",
        f"{report['failures']:.0f}",
        f"{report['lost_gpu_h']:.1f} GPU-h",
        _percent(report["p90_calibration_pct"]),
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} %"


@simulate.command("cluster")
def simulate_cluster(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="YAML: nodes, jobs and services")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="of what goes wrong")] = 0,
    failures_per_day: FailuresPerDay = 0.0,
    launch_failures: LaunchFailures = 0.0,
    stuck_per_day: StuckPerDay = 0.0,
    stragglers: Stragglers = 0.0,
    launch_s: LaunchS = 0.0,
    picture: Picture = None,
    skip_bad_rows: SkipBadRows = False,
    as_json: Json = False,
    output: Output = Format.TABLE,
) -> None:
    """Let jobs and services share a cluster in virtual time, and say what each got."""
    from llmos.sim import cluster_spec, cluster_twin
    from llmos.sim.faults import Faults

    asked = cluster_spec.read(yaml_of(spec), spec.parent, skip_bad_rows=skip_bad_rows)
    for path, row in asked.bad:
        note(f"warning: {path}: skipped {row}")
    faults = Faults(seed, failures_per_day, launch_failures, stuck_per_day, stragglers, launch_s)
    found = cluster_twin.twin(asked.jobs, asked.fleets, asked.nodes, asked.per_node, asked.until_s, faults)
    if picture:
        _write(picture, found.stays, asked.nodes, asked.per_node, f"{spec.name}: {asked.nodes * asked.per_node} GPUs")
    if as_json or output is Format.JSON:
        return say_json({"jobs": found.jobs, "services": found.services})
    header = ("SERVICE", "REQUESTS", "IN TIME", "REPLICAS", "STARTS")
    say(columns(header, [(name, *_service_cells(figures)) for name, figures in found.services.items()]))
    say("")
    goodput = _percent(found.jobs["goodput_pct"])
    say(
        columns(
            ("JOBS ENDED", "GOODPUT", *_JOB_COLUMNS),
            [(f"{found.jobs['jobs']:.0f} of {len(asked.jobs)}", goodput, *_job_cells(found.jobs))],
        )
    )


def _service_cells(figures: Mapping[str, float | None]) -> tuple[str, ...]:
    requests, starts = f"{figures['requests']:.0f}", f"{figures['starts']:.0f}"
    return requests, _percent(figures["attained_pct"]), f"{figures['mean_replicas']:.2f}", starts
