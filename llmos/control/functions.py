"""Functions that users have sent: bytes under their SHA-256, which the control module keeps and never looks into.

Only a worker process of a job whose spec names one loads it (``train/function.py``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from llmos.errors import NotFoundError, UsageError
from llmos.files import write_atomic
from llmos.layout import Layout
from llmos.spec import Function

MAX_FUNCTION_BYTES = 512 * 1024
"""Code is small; data has its own ways to the cluster. In base64 it is below the limit of any request's body."""
KEPT_S = 600.0
"""How long a function is there at least once it was sent: the job that names it may be on its way."""


def keep(layout: Layout, sha256: str, pickle: str, now: float) -> dict[str, Any]:
    """Store the function whose bytes are ``pickle`` (base64) as ``sha256``, sent ``now``. Raises UsageError."""
    try:
        content = base64.b64decode(pickle, validate=True)
    except binascii.Error as error:
        raise UsageError(f"`pickle` is not base64: {error}", param="pickle") from None
    if len(content) > MAX_FUNCTION_BYTES:
        raise UsageError(too_large(len(content)), param="pickle")
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise UsageError(f"the function has SHA-256 {found}: expected {sha256[:64]}", param="sha256")
    path = layout.function(sha256)
    try:
        os.utime(path, (now, now))
    except FileNotFoundError:
        write_atomic(path, content, mode=0o600)
        os.utime(path, (now, now))
    return {"sha256": sha256, "bytes": len(content)}


def forget(layout: Layout, named: Collection[str], now: float) -> None:
    """Delete the functions that are not ``named`` (SHA-256s) and were last sent more than KEPT_S before ``now``."""
    if layout.functions.exists():
        for path in layout.functions.iterdir():
            if path.name not in named and now - path.stat().st_mtime > KEPT_S:
                path.unlink()


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
        what = f"no function {function.sha256} is kept here: it was not sent, or the jobs that named it have ended"
        raise NotFoundError(what, hint="Submit it with `llmos.train_function`.", param="function.sha256")


def stored(function: Function, layout: Layout) -> Path:
    """The file of a function that was sent."""
    return layout.function(str(function.sha256))
