"""Where the ``llmos`` command begins, and what every error looks like.

Little is loaded here: `llmos status` is there before Typer would be (``glance``); all else is in ``commands``.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from llmos.cli.text import note, paint
from llmos.errors import LlmosError

ENV_DEBUG = "LLMOS_DEBUG"


def main() -> None:
    """Run the command in ``sys.argv``. Never returns: every end, good or bad, is an exit code."""
    try:
        if sys.argv[1:] == ["status"]:
            _status()
        from llmos.cli.commands import app

        app(prog_name="llmos")
    except LlmosError as error:
        _fail(paint("error:", "red", sys.stderr) + f" {error}", error.exit_code)
    except Exception as error:
        import shlex

        again = shlex.join(["llmos", "--debug", *sys.argv[1:]])
        _fail(
            f"{paint('error:', 'red', sys.stderr)} {type(error).__name__}: {error}\n"
            f"  this should not happen; see why with `{again}`",
            1,
        )


def _status() -> None:
    """`llmos status` without options, as it is typed every few minutes. Returns if it did not work: then the command
    does it, or says why not."""
    from llmos.cli import glance

    try:
        if glance.shown():
            sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever reads has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(message: str, code: int) -> NoReturn:
    if os.environ.get(ENV_DEBUG):
        import traceback

        traceback.print_exc()
    note(message)
    sys.exit(code)
