"""Who asks, signed by the front door: the header that a replica lets a request in for, once.

A replica knows no keys. What the front door has found out about the caller travels with the request, together with the
time until which it counts, the place where, and an HMAC-SHA256 of all that, made with a secret that only processes of
the cluster can read. Whoever has got hold of a header can do nothing with it: where it counts, it has been used.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import json
import operator
import time
from os import urandom
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request

from llmos.errors import AuthError, ClusterError
from llmos.layout import Layout
from llmos.openai.caller import Caller
from llmos.openai.server import Authorize

HEADER = "llmos-caller"
VALID_S = 60.0
"""From signing to the replica's check: a retry takes less, and clocks of a cluster differ by less."""
_VALUES = operator.attrgetter(*(field.name for field in dataclasses.fields(Caller)))
_COMPACT = json.JSONEncoder(separators=(",", ":"))
_SIGNATURE_CHARS = 2 * hashlib.sha256().digest_size


def read_secret(layout: Layout) -> bytes:
    """The cluster's secret. Raises ClusterError if this machine does not have it."""
    try:
        return layout.caller_secret.read_bytes()
    except OSError as error:
        raise ClusterError(
            f"{layout.caller_secret} cannot be read: {error.strerror}",
            hint="expected the state directory on storage that all nodes mount (`llmos up --state-dir`)",
        ) from error


def place(url: str, path: str) -> str:
    """Where a header counts: ``path`` at the replica that listens at ``url``."""
    return urlsplit(url).netloc + path


def sign(caller: Caller, secret: bytes, where: str, now: float | None = None) -> str:
    """The header's value for ``caller`` at the :func:`place` ``where``, good for VALID_S from ``now`` (seconds since
    1970). No two are the same."""
    until = int((time.time() if now is None else now) + VALID_S)
    claim = _COMPACT.encode([until, where, urandom(8).hex(), _VALUES(caller)]).encode()
    return f"{base64.urlsafe_b64encode(claim).decode()}.{hmac.digest(secret, claim, hashlib.sha256).hex()}"


class Verifier:
    """Lets in whom the front door has signed, with each header once."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._used, self._before = set[str](), set[str]()  # signatures; those of `before` are about to count no more
        self._turn_s = 0.0

    def verify(self, header: str | None, where: str, now: float | None = None) -> Caller:
        """The caller whom the front door has signed for the place ``where``. Raises AuthError."""
        until, there, _, fields = _claim(header or "", self._secret)
        moment = time.time() if now is None else now
        if not moment < until < moment + 2 * VALID_S:
            raise _refusal("is out of date: the clocks of the two machines differ, or it was sent twice")
        if there != where:
            raise _refusal("is for another place")
        self._use((header or "")[-_SIGNATURE_CHARS:], moment)
        return Caller(*fields)

    def _use(self, signature: str, moment: float) -> None:
        if signature in self._used or signature in self._before:
            raise _refusal("was sent twice")
        if moment - self._turn_s > 2 * VALID_S:  # longer than any header counts
            self._before, self._used, self._turn_s = self._used, set(), moment
        self._used.add(signature)


def authorizer(secret: bytes) -> Authorize:
    """The check of a replica, for :func:`llmos.openai.server.create_app`."""
    verifier = Verifier(secret)

    async def authorize(request: Request, _scope: str) -> Caller:
        host, port = request.scope["server"]  # where this process listens, whatever the request says
        return verifier.verify(request.headers.get(HEADER), f"{host}:{port}{request.scope['path']}")

    return authorize


def _claim(header: str, secret: bytes) -> tuple[float, str, str, list[Any]]:
    """Until when the header counts, where, what makes it the only one, and whom it names. Nothing of that is looked at
    before the signature was."""
    text, _, signature = header.partition(".")
    try:
        claim = base64.urlsafe_b64decode(text.encode())
    except ValueError:
        claim = b""
    if not hmac.compare_digest(hmac.digest(secret, claim, hashlib.sha256).hex().encode(), signature.encode()):
        raise _refusal("is missing or not signed by this cluster's front door")
    until, where, once, fields = json.loads(claim)
    return until, where, once, fields


def _refusal(what: str) -> AuthError:
    return AuthError(f"the header `{HEADER}` {what}", hint="Ask the front door: a replica answers nobody else.")
