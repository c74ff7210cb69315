"""``llmos serve`` and ``llmos services``: models that answer requests."""

from __future__ import annotations

import json
import shlex
from typing import Annotated, Any

import typer

from llmos.cli.output import Format, Output, age, client, columns, fields, note, phase, plain, say, say_json, yaml_block

app = typer.Typer()
services = typer.Typer(help="List, describe and remove services.", invoke_without_command=True)
app.add_typer(services, name="services", rich_help_panel="Models and services")

Name = Annotated[str, typer.Argument(metavar="SERVICE")]


@app.command(rich_help_panel="Models and services")
def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="name@version, or name for its newest version")],
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="what requests call it; default: the model's name")
    ] = None,
    replicas: Annotated[int, typer.Option("--replicas", "-r", min=1, help="copies that answer")] = 1,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0, metavar="SECONDS", help="give up waiting after")
    ] = 300,
    output: Output = Format.TABLE,
) -> None:
    """Serve a model, wait until it answers, and print the base URL for OpenAI clients."""
    cluster = client()
    spec = {
        "kind": "Service",
        "name": name or model.partition("@")[0],
        "model": model,
        "replicas": {"min": replicas, "max": replicas},
    }
    service = cluster.serve(spec)
    note(f"service {service.name}: {service.model}, starting {replicas} replica{'s' * (replicas > 1)}")
    service = cluster.wait_service(service.name, timeout_s)
    if output is Format.JSON:
        return say_json(service)
    base = f"{cluster.connection.url}/v1"
    note(
        f"service {service.name} is ready; try\n  {_curl(base, service.name)}\n"
        "and use this base URL with any OpenAI client:"
    )
    say(base)


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
        (s.name, s.model, phase(s.phase), f"{s.ready}/{s.replicas}", age(s.created_at), plain(s.message)) for s in found
    ]
    say(columns(("NAME", "MODEL", "PHASE", "READY", "AGE", "MESSAGE"), rows))


@services.command("describe")
def describe_service(name: Name, output: Output = Format.TABLE) -> None:
    """Show a service: its replicas, what they say, and its spec."""
    service = client().service(name)
    if output is Format.JSON:
        return say_json(service)
    pairs = [
        ("service", service.name),
        ("phase", phase(service.phase)),
        ("model", service.model),
        ("ready", f"{service.ready} of {service.replicas}"),
        ("age", age(service.created_at)),
        ("message", plain(service.message)),
    ]
    say(fields(pairs))
    say(f"spec\n{yaml_block(service.spec)}")


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
