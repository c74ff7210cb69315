"""The verbs about keys and about what requests have used."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from llmos.control.auth import Auth, Key
from llmos.control.store import Store
from llmos.control.store.request_usage import day
from llmos.errors import ForbiddenError, UsageError
from llmos.spec import DEFAULT_TENANT
from llmos.spec.base import parse_duration
from llmos.usage import Record

View = dict[str, Any]

GROUPS = ("day", "tenant", "key", "service", "model")
"""What sums of usage can be told apart by."""
USAGE_SINCE = "30d"
_log = logging.getLogger(__name__)
_TOKENS = ("prompt", "cached", "completion")


class Accounts:
    """A part of :class:`llmos.control.control.Control`."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._auth = Auth(store, clock)

    def authorize(self, authorization: str | None, scope: str) -> View:
        """``{id, name, scopes, tenant, limits, tenant_limits}`` of the key in an ``Authorization`` header; else
        AuthError, ForbiddenError."""
        key = self._auth.authorize(authorization, scope)
        return {
            **{"id": key.id, "name": key.name, "scopes": list(key.scopes), "tenant": key.tenant},
            **{"limits": dict(key.limits), "tenant_limits": self._store.tenants.limits(key.tenant)},
        }

    def list_keys(self) -> list[View]:
        return self._auth.list()

    def create_key(
        self,
        name: str,
        scopes: Sequence[str] = ("infer",),
        tenant: str = DEFAULT_TENANT,
        limits: Mapping[str, int | None] | None = None,
    ) -> View:
        """A new key of a tenant with its ``secret``, which is not stored and not shown again."""
        return self._auth.create(name, scopes, tenant, limits)

    def set_key(self, key: str, limits: Mapping[str, int | None]) -> View:
        """Change some limits of a key, by id or name; None takes one away."""
        return self._auth.limit(key, limits)

    def revoke_key(self, id: str) -> None:
        self._auth.revoke(id)

    def record_usage(self, records: Iterable[Mapping[str, Any]]) -> int:
        """Count requests that are over, each once: the fields of :class:`llmos.usage.Record`. Durable on return, which
        says how many were new. One that could not be counted is told in the log and left out: sent again, it would keep
        all that come after it from being counted."""
        found = []
        for one in records:
            try:
                found.append(Record.of(one))
            except ValueError as error:
                _log.error("usage of request `%s` is not counted: %s", str(one.get("id"))[:50], error)
        return self._store.request_usage.add(found, self._clock())

    def usage(
        self,
        by: Sequence[str] = ("tenant", "key", "service"),
        since: str = USAGE_SINCE,
        asked_by: Key | None = None,
        **only: str | None,
    ) -> View:
        """``{since, by, rows, total}``: what requests have used since a day (YYYY-MM-DD, UTC) or for so long (`7d`).

        ``only`` keeps those of one tenant, key (id or name), service or model. Whoever is no admin sees their own
        tenant's.
        """
        unknown = [name for name in by if name not in GROUPS]
        if unknown:
            raise UsageError(f"by: `{unknown[0][:50]}`: expected some of {', '.join(GROUPS)}", param="by")
        first, only = self._since(since), self._visible(asked_by, only)
        rows = self._store.request_usage.sums([name for name in GROUPS if name in by], first, **only)
        names = {row["id"]: row["name"] for row in self._store.keys.all()} if "key" in by else {}
        (total,) = self._store.request_usage.sums((), first, **only)
        return {
            "since": first,
            "by": list(by),
            "rows": [_shown(row) | ({"key_name": names.get(row["key"], "")} if "key" in row else {}) for row in rows],
            "total": _shown(total),
        }

    def _since(self, text: str) -> str:
        """The first day that ``text`` means."""
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            return text
        try:
            return day(self._clock() - parse_duration(text))
        except (ValueError, OverflowError, OSError):
            what = f"since: `{text[:50]}`: expected a day such as 2026-01-31, or for how long, such as 7d"
            raise UsageError(what, param="since") from None

    def _visible(self, key: Key | None, only: Mapping[str, str | None]) -> dict[str, str | None]:
        """``only``, the key by its id; those who are no admins may ask for their own tenant's."""
        wanted = dict(only)
        if key is not None and not key.allows("admin"):
            if wanted.get("tenant") not in (None, key.tenant):
                what = f"key {key.id} belongs to tenant `{key.tenant}`: it may not see what others use"
                raise ForbiddenError(what, hint="leave `tenant` out, or use a key of scope `admin`")
            wanted["tenant"] = key.tenant
        if wanted.get("key") is not None:
            wanted["key"] = self._store.keys.find(str(wanted["key"]))["id"]
        return wanted


def _shown(row: Mapping[str, Any]) -> View:
    return {f"{name}_tokens" if name in _TOKENS else name: value for name, value in row.items()}
