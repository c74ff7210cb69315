"""API keys ``llmos_<id>_<secret>`` and what they allow.

Scopes contain one another: admin ⊃ submit ⊃ infer. Who may train and serve a model may also ask it something.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from llmos.control.store import Store
from llmos.errors import AuthError, ForbiddenError, UsageError
from llmos.spec import DEFAULT_TENANT, Limits

SCOPES = ("infer", "submit", "admin")
"""From the least to the most."""

_ID_BYTES, _SECRET_BYTES = 5, 32
_MAX_NAME = 100
_KEY = re.compile(r"llmos_([a-z2-7]{8})_([a-z2-7]{52})")
_NOBODY = "-" * 64  # no SHA-256 in hex looks like this
_HINT = "send `Authorization: Bearer llmos_<id>_<secret>`; `llmos keys create` makes a key"


@dataclass(frozen=True, slots=True)
class Key:
    """A valid key: who asks, what is allowed, and whose the jobs are that are submitted with it. ``limits`` are the
    fields of spec.Limits that bound what it may ask of ``/v1``."""

    id: str
    name: str
    scopes: tuple[str, ...]
    tenant: str
    limits: Mapping[str, int] = field(default_factory=dict)

    def allows(self, scope: str) -> bool:
        """Whether one of the key's scopes is ``scope`` or contains it."""
        return any(SCOPES.index(own) >= SCOPES.index(scope) for own in self.scopes)


class Auth:
    """Makes, checks and revokes keys. Checking one is a read of the store: nothing is written."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._keys = store.keys
        self._clock = clock

    def create(
        self,
        name: str,
        scopes: Sequence[str],
        tenant: str = DEFAULT_TENANT,
        limits: Mapping[str, int | None] | None = None,
    ) -> dict[str, Any]:
        """A new key's view with its ``secret``, which is shown this once. Raises UsageError, NotFoundError."""
        if not (name.strip() and len(name) <= _MAX_NAME and name.isprintable()):
            found = repr(name[:_MAX_NAME])
            raise UsageError(f"the name {found} of the key is empty, too long or not printable", param="name")
        unknown = [scope for scope in scopes if scope not in SCOPES]
        if unknown or not scopes:
            found = f"`{unknown[0][:50]}`" if unknown else "none"
            raise UsageError(f"scopes: expected some of {', '.join(SCOPES)}; found {found}", param="scopes")
        id = _random(_ID_BYTES)
        key = f"llmos_{id}_{_random(_SECRET_BYTES)}"
        ordered = sorted(set(scopes), key=SCOPES.index)
        row = self._keys.add(id, name, ordered, _sha256(key), self._clock(), tenant, limits=_checked(limits))
        return _view(row) | {"secret": key}

    def limit(self, ref: str, limits: Mapping[str, int | None]) -> dict[str, Any]:
        """Change some limits of the key of this id or name; None takes one away. Raises UsageError, NotFoundError,
        ConflictError."""
        _checked(limits)
        return _view(self._keys.limit(ref, limits, self._clock()))

    def list(self) -> list[dict[str, Any]]:
        """Every key, oldest first, without secrets."""
        return [_view(row) for row in self._keys.all()]

    def revoke(self, id: str) -> None:
        """Raises NotFoundError, and ConflictError for the last key with scope admin."""
        self._keys.revoke(id, self._clock())

    def authorize(self, header: str | None, scope: str) -> Key:
        """The key in an ``Authorization`` header. Raises AuthError; ForbiddenError if it does not allow ``scope``."""
        key = self.authenticate(header)
        if not key.allows(scope):
            raise ForbiddenError(
                f"key {key.id} may not do this: expected scope `{scope}`, it has {', '.join(key.scopes)}",
                hint=f"use another key, or create one: `llmos keys create NAME --scope {scope}`",
            )
        return key

    def authenticate(self, header: str | None) -> Key:
        """The valid key in an ``Authorization`` header, else AuthError.

        Unknown, malformed, revoked and wrong keys get the same answer after the same work.
        """
        if not header:
            raise AuthError("no API key was sent", hint=_HINT)
        scheme, _, presented = header.partition(" ")
        match = _KEY.fullmatch(presented.strip()) if scheme.lower() == "bearer" else None
        row = self._keys.get(match[1] if match else "")
        correct = hmac.compare_digest(_sha256(presented.strip()), row["secret_sha256"] if row else _NOBODY)
        if not (correct and row and row["revoked_at"] is None):
            raise AuthError("the API key is not valid", hint=_HINT)
        return Key(row["id"], row["name"], tuple(row["scopes"]), row["tenant"], row["limits"])


def _view(row: dict[str, Any]) -> dict[str, Any]:
    shown = ("id", "name", "scopes", "tenant", "limits", "created_at", "revoked_at")
    return {name: row[name] for name in shown}


def _checked(limits: Mapping[str, int | None] | None) -> dict[str, int]:
    """Those that say something. Raises UsageError."""
    try:
        return Limits.model_validate(dict(limits or {})).model_dump(exclude_none=True)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        expected = f"expected whole numbers from 1 for {', '.join(Limits.model_fields)}"
        raise UsageError(f"limits: `{where[:100]}`: {expected}", param="limits") from None


def _random(size: int) -> str:
    """``size`` random bytes in base32, lower case: no `_`, and a double click selects the whole key."""
    return base64.b32encode(secrets.token_bytes(size)).decode().rstrip("=").lower()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
