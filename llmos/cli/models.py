"""``llmos models``: the registry of trained and imported models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmos.cli.output import Format, Output, age, client, columns, fields, note, plain, say, say_json, size, yaml_block
from llmos.errors import UsageError

if TYPE_CHECKING:
    from llmos.views import ModelView

app = typer.Typer()
models = typer.Typer(help="List, import, name, export and remove models.", invoke_without_command=True)
app.add_typer(models, name="models", rich_help_panel="Models and services")

Ref = Annotated[str, typer.Argument(metavar="MODEL", help="name@version, name@alias, or name for its newest version")]
Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="name@alias, as in coder@prod")]


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
        (
            *(model.ref, ", ".join(model.get("aliases", ())), f"{model.parameters / 1e6:.1f}M"),
            *(size(model.size_bytes), age(model.created_at), model.digest[:12]),
        )
        for model in found
    ]
    say(columns(("MODEL", "ALIASES", "PARAMETERS", "SIZE", "AGE", "DIGEST"), rows))


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
                ("aliases", ", ".join(model.get("aliases", ()))),
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


@models.command("alias")
def set_alias(
    alias: Alias,
    target: Annotated[str | None, typer.Argument(help="a version: 3, coder@3 or another alias")] = None,
    remove: Annotated[bool, typer.Option("--rm", help="remove the alias")] = False,
) -> None:
    """Have an alias mean a version of a model; without one, show what it has meant. Services that follow it change."""
    cluster = client()
    if remove:
        cluster.remove_alias(_alias(alias))
        return note(f"alias {alias} is removed")
    if target is None:
        return _say_history(cluster.alias(_alias(alias)))
    note(f"{alias} means {cluster.set_alias(_alias(alias), target).ref}")


@models.command("promote")
def promote(
    ref: Ref,
    to: Annotated[str, typer.Option("--to", metavar="ALIAS", help="the alias, without the model's name")] = "prod",
) -> None:
    """Have the alias `prod` of a model mean this version. Services that follow it are updated."""
    alias = f"{ref.partition('@')[0]}@{to}"
    note(f"{alias} means {client().set_alias(alias, ref).ref}")


@models.command("rollback")
def rollback(alias: Alias) -> None:
    """Have an alias mean what it did before. Services that follow it are updated."""
    note(f"{alias} means {client().rollback_alias(_alias(alias)).ref} again")


def _alias(text: str) -> str:
    if not all(text.partition("@")):
        raise UsageError(f"`{text}` is not an alias: expected name@alias, as in coder@prod", param="ALIAS")
    return text


def _say_history(model: ModelView) -> None:
    rows = [
        (f"{model.name}@{one['version']}", age(one["created_at"]), "taken back" if one["undone_at"] else "")
        for one in model["history"]
    ]
    say(columns(("VERSION", "SET", ""), rows))


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
