"""The ``llmos`` command as Typer sees it: its groups and its global options."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from llmos import __version__
from llmos.cli import (
    chat,
    cluster,
    compress,
    doctor,
    estimate,
    evaluate,
    jobs,
    keys,
    load,
    models,
    scheduler,
    services,
    simulate,
    tenants,
    usage,
)
from llmos.cli.app import ENV_DEBUG

EPILOG = """\
Exit codes: 0 done · 1 it failed (a job, the cluster, a missing name) · 2 it was asked wrongly (options, a spec) · \
130 Ctrl-C.

Environment: LLMOS_URL, LLMOS_API_KEY (default: what `llmos up` or `llmos login` stored) · \
LLMOS_STATE_DIR (default: ~/.llmos) · NO_COLOR · LLMOS_DEBUG.
"""

app = typer.Typer(
    name="llmos",
    help="An operating system for language models on one Ray cluster: train, serve and share the same machines.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"llmos {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    debug: Annotated[bool, typer.Option("--debug", envvar=ENV_DEBUG, help="show tracebacks")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    if debug:
        os.environ[ENV_DEBUG] = "1"  # main() reads it, and so do processes that a command starts


NOUNS = (
    cluster,
    doctor,
    jobs,
    scheduler,
    models,
    evaluate,
    compress,
    services,
    chat,
    estimate,
    simulate,
    tenants,
    keys,
    load,
    usage,
)
for noun in NOUNS:
    app.add_typer(noun.app)
