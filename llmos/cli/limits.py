"""Options about limits, which keys and tenants share."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos.errors import UsageError

NONE = "none"

RequestsPerMinute = Annotated[
    str | None, typer.Option("--requests-per-minute", metavar="N", help="most requests to /v1 in any minute")
]
TokensPerMinute = Annotated[
    str | None, typer.Option("--tokens-per-minute", metavar="N", help="most tokens, of prompts and answers")
]
Concurrency = Annotated[str | None, typer.Option("--concurrency", metavar="N", help="most requests at once")]


def limit_changes(requests: str | None, tokens: str | None, concurrency: str | None) -> dict[str, int | None]:
    """Those options that were given, as fields of Limits; `none` is None. Raises UsageError."""
    given = {
        "requests_per_min": ("--requests-per-minute", requests),
        "tokens_per_min": ("--tokens-per-minute", tokens),
        "concurrency": ("--concurrency", concurrency),
    }
    return {field: _number(option, text) for field, (option, text) in given.items() if text is not None}


def shown_limits(limits: dict[str, int] | None) -> str:
    """In a few characters: ``60/min 20000 tok/min 4 at once``."""
    units = {"requests_per_min": "/min", "tokens_per_min": " tok/min", "concurrency": " at once"}
    return " ".join(f"{most}{units[field]}" for field, most in (limits or {}).items() if most is not None) or "-"


def _number(option: str, text: str) -> int | None:
    if text == NONE:
        return None
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise UsageError(f"`{option} {text[:80]}`: expected a whole number from 1, or `{NONE}`", param=option)
    return int(text)
