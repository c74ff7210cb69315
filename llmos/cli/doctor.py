"""``llmos doctor``: what this machine lacks; with ``--network``, how fast ranks sum."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos import settings
from llmos.cli.output import Format, Output, columns, note, paint, plain, say, say_json, size
from llmos.core import capacity
from llmos.errors import UsageError
from llmos.files import read_json, write_json
from llmos.layout import Layout

if TYPE_CHECKING:
    from llmos.doctor import Finding
    from llmos.parallel.network import Network

app = typer.Typer()
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
HEADER = ("SIZE", "TIME", "ALGORITHM", "BUS", "MODEL", "RATIO")

NetworkOption = Annotated[bool, typer.Option("--network", help="measure all-reduce between ranks instead")]
Ranks = Annotated[int | None, typer.Option("--ranks", help="of --network; default: a GPU each, else 2")]
Cluster = Annotated[bool, typer.Option("--cluster", help="with --network: a job of `--ranks` workers measures")]
GpusEach = Annotated[int, typer.Option("--gpus", min=0, help="with --cluster: GPUs of each worker")]
Save = Annotated[bool, typer.Option("--save", help="with --network: `llmos estimate` goes by what was measured")]


@app.command(rich_help_panel="Cluster")
def doctor(
    network: NetworkOption = False,
    ranks: Ranks = None,
    cluster: Cluster = False,
    gpus: GpusEach = 0,
    save: Save = False,
    output: Output = Format.TABLE,
) -> None:
    """Look for what this machine lacks, one line each with what to do; exit code 1 if something cannot work."""
    layout = Layout(settings.state_dir())
    if network:
        return _network(layout, _measured(ranks, cluster, gpus), save, output)
    if cluster:
        raise UsageError("`--cluster` measures the network: expected `--network` too", param="--cluster")
    from llmos.doctor import examine

    findings = []
    for finding in examine(layout):
        findings.append(finding)
        if output is Format.TABLE:
            say(_line(finding))
    if output is Format.JSON:
        say_json([dataclasses.asdict(finding) for finding in findings])
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


def _line(finding: Finding) -> str:
    mark = paint(finding.status.ljust(4), COLOURS[finding.status])
    advice = f"\n                      {finding.advice}" if finding.advice else ""
    return f"{mark}  {finding.name.ljust(15)} {plain(finding.found)}{advice}"


def _measured(ranks: int | None, cluster: bool, gpus_each: int) -> Network:
    from llmos.doctor import measure_cluster, ranks_here
    from llmos.parallel.gpus import gpus
    from llmos.parallel.network import measure_here

    count = ranks_here(ranks, (lambda: 2) if cluster else lambda: len(gpus()))
    note(f"measuring sums between {count} {'workers' if cluster else 'ranks of this machine'}; nothing else should run")
    return measure_cluster(count, gpus_each) if cluster else measure_here(count)


def _network(layout: Layout, found: Network, save: bool, output: Format) -> None:
    from llmos.parallel.calibrate import kind_name

    kind = kind_name()
    if output is Format.JSON:
        say_json(network_view(found))
    else:
        say(columns(HEADER, _rows(found)))
        _explain(found, kind, layout)
    if save:
        layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        every = read_json(layout.calibration) or {}
        measured = {**every.get(kind, {}), "all_reduce_bandwidth": found.bandwidth}
        write_json(layout.calibration, {**every, kind: measured})
        note(f"{kind}: remembered in {layout.calibration}")


def network_view(found: Network) -> dict[str, Any]:
    """What was measured, and what the cost model says (JSON): bytes, seconds, bytes per second."""
    from llmos.parallel.network import moved

    sums = [
        {
            **{"size_bytes": one.size_bytes, "time_s": one.time_s, "algorithm_bandwidth": one.size_bytes / one.time_s},
            **{"bus_bandwidth": moved(found.ranks, one.size_bytes) / one.time_s},
            **{"model_s": (model_s := found.predicted_s(one.size_bytes)), "ratio": one.time_s / model_s},
        }
        for one in found.sums
    ]
    links = [dataclasses.asdict(link) | {"slow": link in found.slow} for link in found.links]
    about = {"ranks": found.ranks, "backend": found.backend}
    return {**about, "latency_s": found.latency_s, "bandwidth": found.bandwidth, "sums": sums, "links": links}


def _rows(found: Network) -> list[tuple[str, ...]]:
    return [
        (
            size(row["size_bytes"]),
            _time(row["time_s"]),
            f"{size(row['algorithm_bandwidth'])}/s",
            f"{size(row['bus_bandwidth'])}/s",
            _time(row["model_s"]),
            f"{row['ratio']:.2f}",
        )
        for row in network_view(found)["sums"]
    ]


def _explain(found: Network, kind: str, layout: Layout) -> None:
    from llmos.control.estimate import calibrated

    note(
        f"{found.ranks} ranks over {found.backend}: {_time(found.latency_s)} + 2(n-1)/n · bytes / "
        f"{size(found.bandwidth)}/s fits best; BUS is 2(n-1)/n · bytes / TIME, RATIO is TIME / MODEL"
    )
    if kind in capacity.KINDS:
        assumed = calibrated(capacity.hardware(kind), layout).intra_bandwidth
        share = found.bandwidth / assumed
        note(f"`llmos estimate` counts on {size(assumed)}/s for {kind}: {share:.2f} of that was found")
    for link in found.slow:
        note(f"slow: ranks {link.a} and {link.b}, {size(link.bandwidth)}/s; see their cable, switch or PCIe slot")
    if not found.slow:
        note(f"no link of the {len(found.links)} is slower than half of the usual one")


def _time(seconds: float) -> str:
    return f"{1e6 * seconds:.0f} µs" if seconds < 1e-3 else f"{1e3 * seconds:.2f} ms"
