"""``llmos load``: how a service does under a load of requests."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.cli.chat import only
from llmos.cli.output import Format, Output, client, columns, note, say, say_json
from llmos.errors import DataError

if TYPE_CHECKING:
    from llmos.load import Ask

app = typer.Typer()

Qps = Annotated[
    float | None, typer.Option("--qps", min=0.001, help="requests a second; default: as in the trace, or 1")
]
Trace = Annotated[Path | None, typer.Option("--trace", help="Azure LLM CSV, or Mooncake JSONL; default: made up")]
Slo = Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="of goodput; default: the service's `slo`")]


@app.command(rich_help_panel="Models and services")
def load(
    service: Annotated[str | None, typer.Option("--service", help="default: the only one there is")] = None,
    trace: Trace = None,
    qps: Qps = None,
    requests: Annotated[int, typer.Option("--requests", min=1, metavar="N", help="at most so many")] = 100,
    prompt: Annotated[int, typer.Option("--prompt", min=1, metavar="TOKENS", help="without a trace: mean length")] = 64,
    answer: Annotated[int, typer.Option("--answer", min=1, metavar="TOKENS", help="without a trace: mean length")] = 32,
    most_prompt: Annotated[int, typer.Option("--most-prompt", min=1, metavar="TOKENS", help="cut longer ones")] = 4096,
    most_answer: Annotated[int, typer.Option("--most-answer", min=1, metavar="TOKENS", help="cut longer ones")] = 512,
    first_token_s: Slo = None,
    token_s: Slo = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of prompts, and of a made-up load")] = 0,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="draw each request")] = None,
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="go on without malformed rows")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="the same as -o json")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Send requests to a service at their own times, answered or not, and say how soon the answers came."""
    from llmos.load import drive, paced, summary

    cluster = client()
    name = service or only(cluster)
    slo = cluster.service(name).spec.get("slo") or {}
    promises = (first_token_s or slo.get("first_token_s"), token_s or slo.get("token_s"))
    wanted = _asks(trace, requests, prompt, answer, seed, skip_bad_rows)
    asks = paced(wanted, qps, most_prompt, most_answer)
    note(f"{len(asks)} requests to {name} over {asks[-1].at_s:.0f} s")
    outcomes = asyncio.run(drive(cluster.connection, name, asks, seed, _counter(len(asks))))
    found = summary(outcomes, *promises)
    if svg:
        from llmos.load_picture import picture

        svg.write_text(picture(outcomes, f"{name}: {len(asks)} requests", *promises))
    say_json(found) if as_json or output is Format.JSON else _say(found)


def _asks(trace: Path | None, count: int, prompt: int, answer: int, seed: int, skip_bad_rows: bool) -> Sequence[Ask]:
    from llmos.load import Ask, synthetic
    from llmos.sim.request_traces import read_requests

    if trace is None:
        return synthetic(count, prompt, answer, seed)
    table = read_requests(trace, skip_bad_rows=skip_bad_rows)
    if not table.rows:
        raise DataError(f"{trace} has no requests", hint="expected Azure's CSV, or Mooncake's JSONL")
    return [Ask(row.at_s, row.prompt, row.answer) for row in table.rows[:count]]


def _counter(total: int) -> Callable[[], None]:
    """Counts on a terminal how many have been answered."""
    done = 0

    def told() -> None:
        nonlocal done
        done += 1
        if sys.stderr.isatty():
            print(f"\r{done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return told


def _say(found: dict[str, Any]) -> None:
    names = {"first_token_s": "to the first token", "token_s": "per token after it", "total_s": "to the end"}
    rows = [(label, *map(_ms, found[name].values())) for name, label in (names | {"late_s": "sent late by"}).items()]
    say(columns(("", *(name.upper() for name in found["late_s"])), rows))
    goodput = found["goodput"]
    say(
        f"{found['answered']} of {found['requests']} answered in {found['seconds'] or 0:.1f} s: "
        f"{found['requests_per_s'] or 0:.2f} requests/s, {found['tokens_per_s'] or 0:.1f} tokens/s; "
        f"as promised: {goodput['share'] or 0:.1%}, {goodput['requests_per_s'] or 0:.2f} requests/s"
    )
    for error, count in found["errors"].items():
        say(f"{count} failed: {error}")


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
