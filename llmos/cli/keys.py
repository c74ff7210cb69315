"""``llmos keys``: who may do what, and how much of it."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos.cli.limits import Concurrency, RequestsPerMinute, TokensPerMinute, limit_changes, shown_limits
from llmos.cli.output import Format, Output, age, client, columns, note, plain, say, say_json
from llmos.errors import UsageError

app = typer.Typer()
keys = typer.Typer(help="List, create and revoke API keys.", invoke_without_command=True)
app.add_typer(keys, name="keys", rich_help_panel="Tenants and keys")


@keys.callback()
def _list_by_default(context: typer.Context, output: Output = Format.TABLE) -> None:
    if context.invoked_subcommand is None:
        list_keys(output)


@keys.command("list")
def list_keys(output: Output = Format.TABLE) -> None:
    """List the API keys, without their secrets."""
    found = client().keys()
    if output is Format.JSON:
        return say_json(found)
    rows = [
        (
            key.id,
            plain(key.name),
            ",".join(key.scopes),
            key.get("tenant", "default"),
            shown_limits(key.get("limits")),
            age(key.created_at),
            "revoked" if key.get("revoked_at") else "valid",
        )
        for key in found
    ]
    say(columns(("ID", "NAME", "SCOPES", "TENANT", "LIMITS", "AGE", "STATE"), rows))


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="what the key is for; people see it in lists")],
    scope: Annotated[
        list[str] | None, typer.Option("--scope", "-s", help="infer (default), submit or admin; repeat for several")
    ] = None,
    tenant: Annotated[
        str, typer.Option("--tenant", "-t", help="whose the jobs are that are submitted with it")
    ] = "default",
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    concurrency: Concurrency = None,
    output: Output = Format.TABLE,
) -> None:
    """Create an API key and print its secret, which is shown this once."""
    limits = limit_changes(requests_per_minute, tokens_per_minute, concurrency)
    key = client().create_key(name, scope or ["infer"], tenant, limits)
    if output is Format.JSON:
        return say_json(key)
    note(f"key {key.id} ({plain(key.name)}: {', '.join(key.scopes)}). Keep the secret: it is not shown again.")
    say(key.secret)


@keys.command("set")
def set_key(
    key_ref: Annotated[str, typer.Argument(metavar="KEY", help="its id or name; see `llmos keys list`")],
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    concurrency: Concurrency = None,
    output: Output = Format.TABLE,
) -> None:
    """Change a key's limits; what is left out stays, and `none` takes a limit away."""
    changes = limit_changes(requests_per_minute, tokens_per_minute, concurrency)
    if not changes:
        raise UsageError("nothing to change: expected at least one option", hint="see `llmos keys set --help`")
    key = client().limit_key(key_ref, changes)
    if output is Format.JSON:
        return say_json(key)
    note(f"key {key.id} ({plain(key.name)}): {shown_limits(key.limits)}")


@keys.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(metavar="ID", help="see `llmos keys list`")]) -> None:
    """Make a key invalid from now on."""
    client().revoke_key(key_id)
    note(f"key {key_id} is revoked")
