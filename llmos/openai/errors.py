"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}`` with the leaf's HTTP status."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError

from llmos.errors import (
    AuthError,
    CapacityError,
    ContextLengthError,
    ForbiddenError,
    LlmosError,
    NotFoundError,
    RateLimitError,
    UnavailableError,
    UsageError,
)

INVALID_REQUEST, SERVER = "invalid_request_error", "server_error"
UNAVAILABLE_S = 2
"""When to ask again who was not there: what has ended is started again within seconds."""

_KINDS: Mapping[type[LlmosError], tuple[str, str | None]] = {
    UsageError: (INVALID_REQUEST, None),
    ContextLengthError: (INVALID_REQUEST, "context_length_exceeded"),
    AuthError: ("authentication_error", "invalid_api_key"),
    ForbiddenError: ("permission_error", "insufficient_permissions"),
    CapacityError: ("rate_limit_error", "rate_limit_exceeded"),
    RateLimitError: ("rate_limit_error", "rate_limit_exceeded"),
}
"""Type and code that clients look for; others get them from their status and class."""


def body(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI writes it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def describe(error: LlmosError) -> dict[str, Any]:
    """The body for ``error``: its message and hint in one line."""
    kind, code = _KINDS.get(type(error), (INVALID_REQUEST if error.http_status < 500 else SERVER, error.code))
    if isinstance(error, NotFoundError) and error.param == "model":
        code = "model_not_found"
    return body(" ".join(filter(None, (_sentence(error.message), error.hint))), kind, param=error.param, code=code)


def headers(error: LlmosError) -> dict[str, str]:
    """What HTTP has headers for."""
    if isinstance(error, CapacityError | UnavailableError):
        left = error.headers if isinstance(error, RateLimitError) else {}
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s))), **left}
    if error.http_status == 503:
        return {"Retry-After": str(UNAVAILABLE_S)}
    return {"WWW-Authenticate": "Bearer"} if isinstance(error, AuthError) else {}


def unknown_model(name: str, served: Iterable[str]) -> NotFoundError:
    """No model of that ``name``."""
    names = ", ".join(f"`{known}`" for known in sorted(served)) or "none yet"
    return NotFoundError(f"model `{name[:100]}` is not served", hint=f"Served: {names}.", param="model")


def invalid(error: RequestValidationError, fields: Iterable[str]) -> UsageError:
    """The one problem of a request body (whose ``fields`` are known) that says most.

    A misspelled name says more than that the right one is missing; a wrong value, than that other types are right too.
    """
    # A place ends with a type (`str`, `list[…]`) where a field takes several.
    first = min(error.errors(), key=lambda one: (one["type"] != "extra_forbidden", one["type"].endswith("_type")))
    path = [part for part in first["loc"][1:] if isinstance(part, int) or (part.isidentifier() and part != "str")]
    if first["type"] == "json_invalid":
        return UsageError(f"the body is not JSON: {first['ctx']['error']}")
    if not path:
        return UsageError("the body is not an object: expected JSON with Content-Type: application/json")
    name = _dotted(path)
    if first["type"] == "missing":
        return UsageError(f"`{name}` is missing", param=name)
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, list(fields), 1)
        hint = f"Did you mean `{close[0]}`?" if close else "Leave it out."
        return UsageError(f"`{name[:100]}` is not a field of this request", hint=hint, param=name[:100])
    what = str(first["msg"]).removeprefix("Value error, ")
    own = first["type"] == "value_error"
    return UsageError(f"`{name}` {what}" if own else f"`{name}`: {what[:1].lower()}{what[1:]}", param=name)


def _dotted(path: list[int | str]) -> str:
    """``["messages", 0, "role"]`` as ``messages[0].role``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else text + "."
