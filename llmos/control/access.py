"""Whose jobs a key may see, describe and cancel: those of its own tenant and of the tenants below it; an admin's, all.

A job of others is answered for as one that does not exist: whether it does is nobody else's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmos.control.auth import Key
from llmos.control.store import Store
from llmos.errors import ForbiddenError

LISTING = frozenset({"list_jobs", "list_queue", "status"})
"""Verbs that are told the tenants whose jobs they may name; those about one job have the argument ``job`` instead."""


class Access:
    """What each key may see of the jobs in ``store``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def tenants(self, key: Key | None) -> frozenset[str] | None:
        """The tenants whose jobs are seen with ``key``; None: all, as with an admin's or by this very process."""
        return None if key is None or key.allows("admin") else self._store.tenants.below(key.tenant)

    def bounded(self, key: Key, verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The ``arguments`` of a verb, within what ``key`` may see: the id of a job that it may see in place of what
        names it, the tenants for verbs that list jobs.

        Raises NotFoundError for a job of others, ForbiddenError if another tenant is named.
        """
        found, bound = dict(arguments), "job" in arguments or verb in LISTING
        if not bound or (tenants := self.tenants(key)) is None:
            return found
        if "job" in found:
            found["job"] = self._store.jobs.find(found["job"], tenants)["id"]
        if verb in LISTING:
            _check(found.get("tenant"), tenants, key)
            found["tenants"] = tenants
        return found


def _check(wanted: str | None, tenants: frozenset[str], key: Key) -> None:
    if wanted is not None and wanted not in tenants:
        raise ForbiddenError(
            f"key {key.id} belongs to tenant `{key.tenant}`: it may not see jobs of tenant `{wanted[:100]}`",
            hint="leave `tenant` out, name one below it, or use a key of scope `admin`",
            param="tenant",
        )
