"""Who asks, signed by the front door: the header that a replica lets a request in for.

A replica knows no keys. What the front door has found out about the caller travels with the request, together with the
time until which it counts and an HMAC-SHA256 of both, made with a secret that only processes of the cluster can read.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import json
import time
from typing import Any

from fastapi import Request

from llmos.errors import AuthError, ClusterError
from llmos.layout import Layout
from llmos.openai.caller import Caller
from llmos.openai.server import Authorize

HEADER = "llmos-caller"
VALID_S = 60.0
"""From signing to the replica's check: a retry takes less, and clocks of a cluster differ by less."""


def read_secret(layout: Layout) -> bytes:
    """The cluster's secret. Raises ClusterError if this machine does not have it."""
    try:
        return layout.caller_secret.read_bytes()
    except OSError as error:
        raise ClusterError(
            f"{layout.caller_secret} cannot be read: {error.strerror}",
            hint="expected the state directory on storage that all nodes mount (`llmos up --state-dir`)",
        ) from error


def sign(caller: Caller, secret: bytes, now: float | None = None) -> str:
    """The header's value for ``caller``, good for VALID_S from ``now`` (seconds since 1970)."""
    until = int((time.time() if now is None else now) + VALID_S)
    claim = json.dumps([until, dataclasses.asdict(caller)], separators=(",", ":")).encode()
    return f"{base64.urlsafe_b64encode(claim).decode()}.{hmac.digest(secret, claim, hashlib.sha256).hex()}"


def verify(header: str | None, secret: bytes, now: float | None = None) -> Caller:
    """The caller whom the front door has signed. Raises AuthError."""
    until, fields = _claim(header or "", secret)
    moment = time.time() if now is None else now
    if not moment < until < moment + 2 * VALID_S:
        raise _refusal("is out of date: the clocks of the two machines differ, or it was sent twice")
    return Caller(**fields)


def authorizer(secret: bytes) -> Authorize:
    """The check of a replica, for :func:`llmos.openai.server.create_app`."""

    async def authorize(request: Request, _scope: str) -> Caller:
        return verify(request.headers.get(HEADER), secret)

    return authorize


def _claim(header: str, secret: bytes) -> tuple[float, dict[str, Any]]:
    """Until when the header counts, and what it says. Nothing of it is looked at before the signature was."""
    text, _, signature = header.partition(".")
    try:
        claim = base64.urlsafe_b64decode(text.encode())
    except ValueError:
        claim = b""
    if not hmac.compare_digest(hmac.digest(secret, claim, hashlib.sha256).hex().encode(), signature.encode()):
        raise _refusal("is missing or not signed by this cluster's front door")
    until, fields = json.loads(claim)
    return until, fields


def _refusal(what: str) -> AuthError:
    return AuthError(f"the header `{HEADER}` {what}", hint="Ask the front door: a replica answers nobody else.")
