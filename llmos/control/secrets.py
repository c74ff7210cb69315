"""Secrets by reference: a spec says where a value is, and only an attempt that starts on the head reads it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from llmos.errors import DataError, LlmosError, NotFoundError

MAX_BYTES = 64 * 1024


def resolve(references: Mapping[str, str]) -> dict[str, str]:
    """The value of each ``env:NAME`` or ``file:/path`` on this machine; one line break at a file's end is dropped.

    Raises NotFoundError for what is not there or empty, DataError for what cannot be a variable's value. Messages name
    the reference, never a value.
    """
    return {variable: _value(variable, reference) for variable, reference in references.items()}


def _value(variable: str, reference: str) -> str:
    scheme, _, target = reference.partition(":")
    value = os.environ.get(target) if scheme == "env" else _content(variable, reference, Path(target))
    if not value:
        raise _missing(variable, reference, "is not set or empty")
    if "\0" in value:
        raise DataError(f"secret `{variable}`: `{reference}` holds a NUL byte: expected text", param=variable)
    return value


def _content(variable: str, reference: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise DataError(f"secret `{variable}`: `{reference}` is too large: expected at most {MAX_BYTES} bytes")
        return content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise DataError(f"secret `{variable}`: `{reference}` is not UTF-8 text", param=variable) from None
    except OSError as error:
        raise _missing(variable, reference, f"cannot be read ({error.strerror})") from None


def _missing(variable: str, reference: str, what: str) -> LlmosError:
    return NotFoundError(
        f"secret `{variable}`: `{reference}` {what} on the head node",
        hint="set it where `llmos up` is run, or correct the reference in `secrets`; then submit again",
        param=variable,
    )
