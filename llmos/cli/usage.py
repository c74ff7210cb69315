"""``llmos usage``: what requests have used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.cli.output import Format, Output, client, columns, note, plain, say, say_json
from llmos.errors import UsageError

if TYPE_CHECKING:
    from llmos.views import UsageView

app = typer.Typer()

_NUMBERS = ("requests", "failed", "abandoned", "prompt_tokens", "cached_tokens", "completion_tokens")
_HEADS = ("REQUESTS", "FAILED", "ABANDONED", "PROMPT", "CACHED", "COMPLETION")
_BY = "tenant,key,service"


@app.command(rich_help_panel="Tenants and keys")
def usage(
    tenant: Annotated[str | None, typer.Option("--tenant", "-t", help="only this tenant's")] = None,
    key: Annotated[str | None, typer.Option("--key", "-k", help="only this key's (its id or name)")] = None,
    service: Annotated[str | None, typer.Option("--service", "-s", help="only this service's")] = None,
    since: Annotated[str, typer.Option("--since", metavar="WHEN", help="a day (2026-01-31, UTC) or for how long")] = (
        "30d"
    ),
    by: Annotated[str, typer.Option("--by", help="a row for each: some of day,tenant,key,service,model")] = _BY,
    json: Annotated[bool, typer.Option("--json", help="the same as `-o json`")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show what requests have used: their number and tokens, by tenant, key and service."""
    groups = [group.strip() for group in by.split(",") if group.strip()]
    if not groups:
        raise UsageError("`--by` names nothing: expected some of day, tenant, key, service, model", param="--by")
    found = client().usage(tenant=tenant, key=key, service=service, since=since, by=groups)
    if json or output is Format.JSON:
        return say_json(found)
    if not found.rows:
        return note(f"nothing was asked since {found.since}")
    say(_table(found))


def _table(found: UsageView) -> str:
    rows = [(*(_whose(row, group) for group in found.by), *_numbers(row)) for row in found.rows]
    total = ("total", *[""] * (len(found.by) - 1), *_numbers(found.total))
    return columns((*(group.upper() for group in found.by), *_HEADS), [*rows, total])


def _whose(row: dict[str, Any], group: str) -> str:
    name = plain(row.get("key_name", "")) if group == "key" else ""
    return f"{plain(row[group])} ({name})" if name else plain(row[group]) or "-"


def _numbers(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{row[name]:,}" for name in _NUMBERS)
