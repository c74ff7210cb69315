"""``llmos chat`` and ``llmos run``: talking to a served model from the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.cli.output import client, note, paint
from llmos.cli.services import service_of
from llmos.errors import LlmosError, NotFoundError, UsageError

if TYPE_CHECKING:
    from llmos.client import Client

app = typer.Typer()

MaxTokens = Annotated[int | None, typer.Option("--max-tokens", min=1, help="end an answer after so many tokens")]
Temperature = Annotated[float | None, typer.Option("--temperature", min=0, max=2, help="0: the likeliest token always")]
System = Annotated[str | None, typer.Option("--system", help="what the model is told before anything else")]

_HELP = "Say something; an empty line, `/bye` or Ctrl-D ends, `/new` begins anew, Ctrl-C ends an answer."


@app.command(rich_help_panel="Models and services")
def chat(
    service: Annotated[str | None, typer.Argument(metavar="SERVICE", help="default: the only one there is")] = None,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
) -> None:
    """Talk to a service; answers appear as they are generated."""
    cluster = client()
    converse(cluster, service or only(cluster), system, _given(max_tokens=max_tokens, temperature=temperature))


@app.command(rich_help_panel="Models and services")
def run(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a service, a registered model, or a directory")],
    prompt: Annotated[str | None, typer.Argument(help="what to ask; `-`: read it from stdin; without it, talk")] = None,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0, metavar="SECONDS", help="to start it")] = 300,
) -> None:
    """Ask a model something. One that is not served yet is served first, under its own name."""
    cluster = client()
    service = _served(cluster, model, timeout_s)
    options = _given(max_tokens=max_tokens, temperature=temperature)
    if prompt is None:
        return converse(cluster, service, system, options)
    text = sys.stdin.read() if prompt == "-" else prompt
    say_stream(ask(cluster, service, [*_system(system), {"role": "user", "content": text}], options))


def converse(cluster: Client, service: str, system: str | None, options: dict[str, Any]) -> None:
    """Ask and answer until there is nothing more to say."""
    note(f"{service}. {_HELP}")
    turns = _system(system)
    while (text := _line()) not in (None, "", "/bye"):
        if text == "/new":
            turns = _system(system)
            continue
        turns.append({"role": "user", "content": str(text)})
        try:
            answer = say_stream(ask(cluster, service, turns, options))
        except LlmosError as error:
            note(f"{paint('error:', 'red', sys.stderr)} {error}")
            turns.pop()
            continue
        turns.append({"role": "assistant", "content": answer})


def ask(
    cluster: Client, service: str, turns: list[dict[str, str]], options: dict[str, Any]
) -> tuple[Iterable[str], Callable[[], None]]:
    """The pieces of the answer to ``turns`` as they come, and what stops it. Raises leaves of ``errors``."""
    from openai import APIConnectionError, APIStatusError

    create: Any = cluster.openai().chat.completions.create
    try:
        stream = create(model=service, messages=turns, stream=True, **options)
    except APIStatusError as error:
        body: Any = error.body if isinstance(error.body, dict) else {}
        raise UsageError(str(body.get("message") or error.message), hint=str(body.get("hint") or "")) from None
    except APIConnectionError:
        raise UsageError(f"nobody answers at {cluster.connection.url}", hint="see `llmos status`") from None
    return (chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices), stream.close


def say_stream(answer: tuple[Iterable[str], Callable[[], None]]) -> str:
    """Print the pieces on stdout as they come, and return them all. Ctrl-C stops the answer, not the program."""
    pieces, stop = answer
    said: list[str] = []
    try:
        for piece in pieces:
            said.append(piece)
            print("".join(c for c in piece if c.isprintable() or c in "\n\t"), end="", flush=True)
    except KeyboardInterrupt:
        stop()
    print(flush=True)
    return "".join(said)


def _line() -> str | None:
    """What is typed next; None at the end."""
    try:
        if sys.stdin.isatty():
            import readline  # noqa: F401  # from now on, `input` has a history and can be edited
        return input(paint("> ", "bold", sys.stdout) if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        return None


def _served(cluster: Client, model: str, timeout_s: float) -> str:
    """The service that answers for ``model``, which is made if there is none."""
    for one in cluster.services():
        if model in (one.name, one.model, one.get("follows"), *one.spec.get("aliases", ())):
            return one.name
    spec = service_of(cluster, model, None) | {"replicas": {"min": 0, "max": 1}}  # it goes when nobody asks it
    if any(one.name == spec["name"] for one in cluster.services()):
        spec["name"] = spec["model"].replace("@", "-")  # that name stands for another version
    name = cluster.serve(spec).name
    note(f"{model} is not served yet: starting service {name}")
    cluster.wait_service(name, timeout_s)
    return name


def only(cluster: Client) -> str:
    """The name of the only service. Raises NotFoundError, UsageError if there are several."""
    names = [service.name for service in cluster.services()]
    if not names:
        raise NotFoundError("there is no service to talk to", hint="`llmos serve MODEL`, or `llmos run MODEL`")
    if len(names) > 1:
        raise UsageError(f"which service: {', '.join(names)}?", hint=f"`llmos chat {names[0]}`", param="SERVICE")
    return names[0]


def _system(text: str | None) -> list[dict[str, str]]:
    return [{"role": "system", "content": text}] if text else []


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
