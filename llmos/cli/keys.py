"""``llmos keys``: who may do what."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos.cli.output import Format, Output, age, client, columns, note, plain, say, say_json

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
            age(key.created_at),
            "revoked" if key.get("revoked_at") else "valid",
        )
        for key in found
    ]
    say(columns(("ID", "NAME", "SCOPES", "TENANT", "AGE", "STATE"), rows))


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="what the key is for; people see it in lists")],
    scope: Annotated[
        list[str] | None, typer.Option("--scope", "-s", help="infer (default), submit or admin; repeat for several")
    ] = None,
    tenant: Annotated[
        str, typer.Option("--tenant", "-t", help="whose the jobs are that are submitted with it")
    ] = "default",
    output: Output = Format.TABLE,
) -> None:
    """Create an API key and print its secret, which is shown this once."""
    key = client().create_key(name, scope or ["infer"], tenant)
    if output is Format.JSON:
        return say_json(key)
    note(f"key {key.id} ({plain(key.name)}: {', '.join(key.scopes)}). Keep the secret: it is not shown again.")
    say(key.secret)


@keys.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(metavar="ID", help="see `llmos keys list`")]) -> None:
    """Make a key invalid from now on."""
    client().revoke_key(key_id)
    note(f"key {key_id} is revoked")
