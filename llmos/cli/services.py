"""``llmos serve`` and ``llmos services``: models that answer requests."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.cli.output import Format, Output, age, client, columns, fields, note, phase, plain, say, say_json, yaml_block
from llmos.errors import UsageError

if TYPE_CHECKING:
    from llmos.client import Client
    from llmos.views import ServiceView

app = typer.Typer()
services = typer.Typer(help="List, describe, change and remove services.", invoke_without_command=True)
app.add_typer(services, name="services", rich_help_panel="Models and services")

Name = Annotated[str, typer.Argument(metavar="SERVICE")]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="name@version, name@alias, name for its newest version, or a directory")
]


@app.command(rich_help_panel="Models and services")
def serve(
    model: Model,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="what requests call it; default: the model's name")
    ] = None,
    replicas: Annotated[
        str, typer.Option("--replicas", "-r", metavar="N|MIN..MAX", help="copies that answer, as in 2 or 0..4")
    ] = "1",
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0, metavar="SECONDS", help="give up waiting after")
    ] = 300,
    output: Output = Format.TABLE,
) -> None:
    """Serve a model, wait until it answers, and print the base URL for OpenAI clients."""
    cluster = client()
    bounds = _bounds(replicas)
    spec = service_of(cluster, model, name) | {"replicas": bounds}
    service = cluster.serve(spec)
    copies = replicas if bounds["min"] < bounds["max"] else f"{bounds['max']}"
    note(f"service {service.name}: {service.model}, starting {copies} replica{'s' * (bounds['max'] > 1)}")
    service = cluster.wait_service(service.name, timeout_s)
    if output is Format.JSON:
        return say_json(service)
    base = f"{cluster.connection.url}/v1"
    note(
        f"service {service.name} is ready; try\n  {_curl(base, service.name)}\n"
        "and use this base URL with any OpenAI client:"
    )
    say(base)


def service_of(cluster: Client, model: str, name: str | None) -> dict[str, Any]:
    """The beginning of the spec of a service: its kind, name and model, which a directory is made."""
    if _is_path(model):
        path = Path(model).expanduser().absolute()
        called = path.name.lower()
        ref = _imported(cluster, called, path) or cluster.import_model(called, path).ref
        return {"kind": "Service", "name": name or called, "model": ref}
    return {"kind": "Service", "name": name or model.partition("@")[0], "model": model}


def _is_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or (Path(model) / "config.json").exists()


def _imported(cluster: Client, name: str, path: Path) -> str | None:
    """The version that was imported from ``path`` since its files have changed last, if there is one."""
    if not path.is_dir():
        return None
    changed_at = max((one.stat().st_mtime for one in path.iterdir()), default=0.0)
    for model in reversed(cluster.models()):
        if model.name == name and model.created_at > changed_at and model["lineage"].get("imported_from") == str(path):
            return model.ref
    return None


def _bounds(text: str) -> dict[str, int]:
    match = re.fullmatch(r"(\d{1,6})(?:\.\.(\d{1,6}))?", text)
    if not match or int(match[2] or match[1]) < max(int(match[1]), 1):
        raise UsageError(
            f"`--replicas {text}`: expected a number of at least 1, or MIN..MAX as in `0..4`", param="--replicas"
        )
    return {"min": int(match[1]), "max": int(match[2] or match[1])}


@services.callback()
def _list_by_default(context: typer.Context, output: Output = Format.TABLE) -> None:
    if context.invoked_subcommand is None:
        list_services(output)


@services.command("list")
def list_services(output: Output = Format.TABLE) -> None:
    """List the services and how many of their replicas answer."""
    found = client().services()
    if output is Format.JSON:
        return say_json(found)
    if not found:
        return note("no services yet: serve a model with `llmos serve MODEL`")
    rows = [
        (s.name, s.model, phase(s.phase), f"{s.ready}/{s.replicas}", _wake(s), age(s.created_at), plain(s.message))
        for s in found
    ]
    say(columns(("NAME", "MODEL", "PHASE", "READY", "WAKES IN", "AGE", "MESSAGE"), rows))


@services.command("describe")
def describe_service(name: Name, output: Output = Format.TABLE) -> None:
    """Show a service: its replicas, what they say, its revisions, and its spec."""
    service = client().service(name)
    if output is Format.JSON:
        return say_json(service)
    pairs = [
        ("service", service.name),
        ("phase", phase(service.phase)),
        ("model", service.model + (f", followed from {service.follows}" if service.get("follows") else "")),
        ("ready", f"{service.ready} of {service.replicas}"),
        ("wakes in", _wake(service)),
        ("age", age(service.created_at)),
        ("message", plain(service.message)),
    ]
    say(fields(pairs))
    say(
        columns(("REVISION", "MODEL", "READY", "REQUESTS", ""), [_revision(one, service) for one in revisions(service)])
    )
    say(f"spec\n{yaml_block(service.spec)}")


def revisions(service: ServiceView) -> list[dict[str, Any]]:
    """Those that matter: what runs, and what a rollback goes to."""
    named = (service.get("revision"), service.get("previous"))
    return [one for one in service.get("revisions", ()) if one["replicas"] or one["ready"] or one["revision"] in named]


def _revision(one: dict[str, Any], service: ServiceView) -> tuple[str, ...]:
    role = {service.get("previous"): "a rollback goes here", service.get("revision"): "current"}
    ready = f"{one['ready']}/{one['replicas']}"
    return str(one["revision"]), one["model"], ready, f"{one['weight']:.0%}", role.get(one["revision"], "")


def _wake(service: ServiceView) -> str:
    """What the last start from zero took."""
    wake_s = service.get("wake_s")
    return "-" if wake_s is None else f"{wake_s:.1f}s"


@services.command("set-weight")
def set_weight(
    name: Name,
    weight: Annotated[float, typer.Argument(min=0, max=1, help="of all requests; 0 ends the canary, 1 promotes it")],
) -> None:
    """Give the canary of a service another share of the requests."""
    service = client().set_weight(name, weight)
    canary = service.spec.get("canary")
    share = f"{canary['model']} gets {canary['weight']:.0%} of the requests" if canary else "no canary"
    note(f"service {service.name}: {service.model}, {share}")


@services.command("rollback")
def rollback(name: Name, output: Output = Format.TABLE) -> None:
    """End the canary of a service or, if it has none, have it run what it ran before."""
    service = client().rollback_service(name)
    say_json(service) if output is Format.JSON else note(
        f"service {service.name} goes back to revision {service.revision}: {service.model}"
    )


@services.command("events")
def events(name: Name, output: Output = Format.TABLE) -> None:
    """What happened to a service, and why."""
    found = client().service_events(name)
    if output is Format.JSON:
        return say_json(found)
    say(columns(("AGE", "EVENT", "WHY"), [(age(one.at), one.what, plain(one.why)) for one in found]))


@services.command("rm")
def remove_service(names: Annotated[list[str], typer.Argument(metavar="SERVICE")]) -> None:
    """Stop services. Their models stay registered."""
    cluster = client()
    for name in names:
        cluster.remove_service(name)
        note(f"service {name} is removed")


def _curl(base: str, name: str) -> str:
    body: dict[str, Any] = {"model": name, "prompt": "def fibonacci(n):", "max_tokens": 64}
    headers = '-H "Authorization: Bearer $LLMOS_API_KEY" -H "Content-Type: application/json"'
    return f"curl {base}/completions {headers} -d {shlex.quote(json.dumps(body))}"
