"""``llmos up down status login quickstart``: the cluster itself."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from llmos import settings
from llmos.cli.output import Format, Output, client, fields, note, plain, say, say_json
from llmos.cli.overview import overview
from llmos.core import types
from llmos.errors import ForbiddenError, UsageError

app = typer.Typer()
PANEL = "Cluster"

StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir", envvar=settings.ENV_STATE_DIR, help="where state lives; default ~/.llmos", show_default=False
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar="RAY_ADDRESS",
        help="join this Ray cluster (`auto`: the one of this machine) instead of starting one",
    ),
]
Port = Annotated[
    int | None,
    typer.Option(
        "--port", min=1, max=65535, help="port of the front door on 127.0.0.1; default 8000", show_default=False
    ),
]

AutoscaleLocal = Annotated[
    int | None,
    typer.Option(
        "--autoscale-local",
        metavar="NODES",
        min=2,
        max=64,
        help="start a cluster that grows to so many nodes on this machine, each with a GPU in name only",
        show_default=False,
    ),
]
AutoscalingConfig = Annotated[
    Path | None,
    typer.Option(
        "--autoscaling-config",
        metavar="FILE",
        help="the file that `ray up` was given, of the cluster to join: the nodes that llmos may ask for",
        exists=True,
        dir_okay=False,
        show_default=False,
    ),
]
Order = Annotated[
    types.Order | None,
    typer.Option(
        "--order",
        help="which jobs of one tenant and priority go first: those that came first, or, with `shortest`, those that "
        "are expected to need the fewest GPU hours; default fifo",
        show_default=False,
    ),
]
Standbys = Annotated[
    int | None,
    typer.Option(
        "--standbys",
        min=0,
        help="processes that stand by on each node with torch loaded, at most, so that jobs start at once; default 8",
        show_default=False,
    ),
]


@app.command(rich_help_panel=PANEL)
def up(
    state_dir: StateDir = None,
    address: Address = None,
    port: Port = None,
    autoscale_local: AutoscaleLocal = None,
    autoscaling_config: AutoscalingConfig = None,
    order: Order = None,
    standbys: Standbys = None,
    block: Annotated[bool, typer.Option("--block", help="stay, and take everything down on Ctrl-C or SIGTERM")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Start Ray, the control module and the gateway, or join what is running; return once everything is ready."""
    _check_autoscaling(address, autoscale_local, autoscaling_config)
    from llmos.control.ray import head

    _end_like_ctrl_c()
    directory = settings.state_dir(state_dir)
    info = head.up(directory, address, port, note, autoscale_local, autoscaling_config, order, standbys)
    if output is Format.JSON:
        say_json(info)
    else:
        say(fields([(name, plain(value)) for name, value in info.items()]))
        note("try `llmos status`, `llmos train FILE`; end with `llmos down`")
    if block:
        _stay(directory)


@app.command(rich_help_panel=PANEL)
def down(state_dir: StateDir = None) -> None:
    """Stop every process that `llmos up` started. State stays."""
    from llmos.control.ray import head

    head.down(settings.state_dir(state_dir), note)


@app.command(rich_help_panel=PANEL)
def quickstart(
    state_dir: StateDir = None,
    address: Address = None,
    port: Port = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="PATH|GLOB", help="text to train on; default: Python's standard library"),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="training steps; fewer for a quick look")] = None,
) -> None:
    """The whole road: start a cluster, train a small model on real text, serve it, and ask it something."""
    from llmos import quickstart as road
    from llmos.cli.progress import watching

    _end_like_ctrl_c()
    road.main(settings.state_dir(state_dir), address, port, data, steps, note, watching)


@app.command(rich_help_panel=PANEL)
def status(output: Output = Format.TABLE) -> None:
    """Show the cluster at a glance: nodes, GPUs used and free, queues, services, who waits and why."""
    view = client().status()
    say_json(view) if output is Format.JSON else say(overview(view))


@app.command(rich_help_panel=PANEL)
def login(
    url: Annotated[str, typer.Argument(metavar="URL", help="the cluster's front door, as in http://127.0.0.1:8000")],
    key_stdin: Annotated[
        bool, typer.Option("--key-stdin", help="read the API key from stdin instead of asking")
    ] = False,
) -> None:
    """Check an API key against a cluster and remember both for later commands."""
    from llmos.client import Client

    url = settings.normalize_url(url)
    key = (
        sys.stdin.readline().strip()
        if key_stdin
        else typer.prompt(f"API key for {url}", hide_input=True, err=True).strip()
    )
    if not key:
        raise UsageError(
            "no API key was given", hint="expected one line: llmos_<id>_<secret>, as `llmos keys create` prints it"
        )
    connection = settings.Connection(url, key)
    if url.startswith("http:") and not connection.loopback:
        note(f"warning: {url} is not encrypted; the key can be read on the way. Use https, or an SSH tunnel.")
    try:
        Client.of(connection).status()
    except ForbiddenError:
        note("the key is valid, but it may not submit jobs (scope `infer` only)")
    note(f"logged in to {url}; remembered in {settings.save_connection(connection)}")


def _check_autoscaling(address: str | None, nodes: int | None, config: Path | None) -> None:
    """Raise UsageError unless these options go together."""
    if nodes and address:
        raise UsageError(
            f"`--autoscale-local` starts a cluster, `--address {address}` joins one: expected one of them",
            hint="leave `--address` out (and RAY_ADDRESS unset)",
        )
    if config and not address:
        raise UsageError(
            "`--autoscaling-config` is of a cluster that runs already: expected `--address`, too",
            hint="on this machine alone, `--autoscale-local N` starts a cluster that grows",
        )


def _end_like_ctrl_c() -> None:
    """Let SIGTERM raise KeyboardInterrupt, too: what a command has started by then must not be left behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _stay(directory: Path) -> None:
    """Sleep until Ctrl-C or SIGTERM, then take down what runs."""
    from llmos.control.ray import head

    note("running; Ctrl-C takes everything down")
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        head.down(directory, note)
