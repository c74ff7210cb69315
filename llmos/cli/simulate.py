"""``llmos simulate``: the twin. Traces replayed in virtual time, under our policies and those of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.cli.output import Format, Output, columns, note, say, say_json
from llmos.errors import UsageError
from llmos.sim import PLACING

if TYPE_CHECKING:
    from llmos.sim.openb_replay import Outcome
    from llmos.sim.tables import Table

app = typer.Typer()
simulate = typer.Typer(help="Replay traces on a cluster that exists only as numbers.", no_args_is_help=True)
app.add_typer(simulate, name="simulate", rich_help_panel="Planning")

Json = Annotated[bool, typer.Option("--json", help="the same as -o json")]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="go on without the malformed rows of a trace")]
Nodes = Annotated[Path, typer.Option("--nodes", metavar="FILE", help="CSV: sn,cpu_milli,memory_mib,gpu,model")]
Pods = Annotated[
    Path, typer.Option("--pods", metavar="FILE", help="CSV: name,cpu_milli,memory_mib,num_gpu,gpu_milli,…")
]
Placing = Annotated[list[str] | None, typer.Option("--policy", help=f"{', '.join(PLACING)}; may be repeated")]
Inflate = Annotated[float, typer.Option("--inflate", min=0.01, max=100, help="GPUs asked for, over those there are")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, max=1000, metavar="N", help="replays, with seeds from 0")]


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
