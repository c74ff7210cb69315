"""The ``llmos`` command: its groups, its global options, and what every error looks like."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from typing import Annotated, NoReturn

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
from llmos.cli.output import note, paint
from llmos.errors import LlmosError

ENV_DEBUG = "LLMOS_DEBUG"

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


def main() -> None:
    """Run the command in ``sys.argv``. Never returns: every end, good or bad, is an exit code."""
    try:
        if sys.argv[1:] == ["status"]:
            _status()
        app(prog_name="llmos")
    except LlmosError as error:
        _fail(paint("error:", "red", sys.stderr) + f" {error}", error.exit_code)
    except Exception as error:
        again = shlex.join(["llmos", "--debug", *sys.argv[1:]])
        _fail(
            f"{paint('error:', 'red', sys.stderr)} {type(error).__name__}: {error}\n"
            f"  this should not happen; see why with `{again}`",
            1,
        )


def _status() -> NoReturn:
    """`llmos status` without options, as it is typed every few minutes: to read options, Typer loads pydantic, which
    takes longer than all the rest."""
    try:
        cluster.status()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever reads has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0)


def _fail(message: str, code: int) -> None:
    if os.environ.get(ENV_DEBUG):
        traceback.print_exc()
    note(message)
    sys.exit(code)
