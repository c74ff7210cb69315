"""``llmos models``: the registry of trained and imported models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmos.cli.output import Format, Output, age, client, columns, fields, note, plain, say, say_json, size, yaml_block

app = typer.Typer()
models = typer.Typer(help="List, import, export and remove models.", invoke_without_command=True)
app.add_typer(models, name="models", rich_help_panel="Models and services")

Ref = Annotated[str, typer.Argument(metavar="MODEL", help="name@version, or name for its newest version")]


@models.callback()
def _list_by_default(context: typer.Context, output: Output = Format.TABLE) -> None:
    if context.invoked_subcommand is None:
        list_models(output)


@models.command("list")
def list_models(output: Output = Format.TABLE) -> None:
    """List every version of every model."""
    found = client().models()
    if output is Format.JSON:
        return say_json(found)
    if not found:
        return note("no models yet: train one with `llmos train FILE`, or `llmos models import PATH`")
    rows = [
        (model.ref, f"{model.parameters / 1e6:.1f}M", size(model.size_bytes), age(model.created_at), model.digest[:12])
        for model in found
    ]
    say(columns(("MODEL", "PARAMETERS", "SIZE", "AGE", "DIGEST"), rows))


@models.command("describe")
def describe_model(ref: Ref, output: Output = Format.TABLE) -> None:
    """Show a model and its lineage: what it was made from, and how well it did."""
    model = client().model(ref)
    if output is Format.JSON:
        return say_json(model)
    say(
        fields(
            [
                ("model", model.ref),
                ("digest", model.digest),
                ("path", plain(model.path)),
                ("age", age(model.created_at)),
            ]
        )
    )
    say(f"lineage\n{yaml_block(model.lineage)}")


@models.command("import")
def import_model(
    path: Annotated[Path, typer.Argument(help="a Hugging Face directory: config.json, *.safetensors, tokenizer.json")],
    name: Annotated[str | None, typer.Option("--name", "-n", help="default: the directory's name")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Register a directory of weights as a new version of a model."""
    model = client().import_model(name or path.absolute().name, path)
    say_json(model) if output is Format.JSON else say(model.ref)


@models.command("export")
def export_model(
    ref: Ref,
    path: Annotated[Path, typer.Argument(help="the directory to create")],
) -> None:
    """Copy a model's files into a new directory."""
    client().export_model(ref, path)
    say(str(path))


@models.command("rm")
def remove_model(refs: Annotated[list[str], typer.Argument(metavar="MODEL", help="name@version")]) -> None:
    """Delete versions of models. A model in use cannot be removed."""
    cluster = client()
    for ref in refs:
        cluster.remove_model(ref)
        note(f"model {ref} is removed")
