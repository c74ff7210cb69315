"""Functions that users have sent: bytes under their SHA-256, which the control module keeps and never looks into.

Only a worker process of a job whose spec names one loads it (``train/function.py``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import sys
from pathlib import Path
from typing import Any

from llmos.errors import NotFoundError, UsageError
from llmos.files import write_atomic
from llmos.layout import Layout
from llmos.spec import Function

MAX_FUNCTION_BYTES = 512 * 1024
"""Code is small; data has its own ways to the cluster. In base64 it is below the limit of any request's body."""


def keep(layout: Layout, sha256: str, pickle: str) -> dict[str, Any]:
    """Store the function whose bytes are ``pickle`` (base64) as ``sha256``; again: nothing new. Raises UsageError."""
    try:
        content = base64.b64decode(pickle, validate=True)
    except binascii.Error as error:
        raise UsageError(f"`pickle` is not base64: {error}", param="pickle") from None
    if len(content) > MAX_FUNCTION_BYTES:
        raise UsageError(too_large(len(content)), param="pickle")
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise UsageError(f"the function has SHA-256 {found}: expected {sha256[:64]}", param="sha256")
    path = layout.function(sha256)
    if not path.exists():
        write_atomic(path, content, mode=0o600)
    return {"sha256": sha256, "bytes": len(content)}


def too_large(size_bytes: int) -> str:
    """What is wrong with a function of so many bytes."""
    return f"the function and what it refers to have {size_bytes:,} bytes: expected at most {MAX_FUNCTION_BYTES:,}"


def check(function: Function, layout: Layout) -> None:
    """Raise NotFoundError unless ``function`` was sent to this ``layout``, UsageError if it is another Python's."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if function.python != here:
        what = f"the function was sent from Python {function.python}: the cluster runs Python {here}"
        hint = f"Use Python {here} here, or put the function into a file and name it with `function.call`."
        raise UsageError(what, hint=hint, param="function.python")
    if not stored(function, layout).exists():
        what = f"no function {function.sha256} was sent to this cluster"
        raise NotFoundError(what, hint="Submit it with `llmos.train_function`.", param="function.sha256")


def stored(function: Function, layout: Layout) -> Path:
    """The file of a function that was sent."""
    return layout.function(str(function.sha256))
