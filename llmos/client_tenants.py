"""The part of ``Client`` about who may do what: tenants and keys."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmos.views import KeyView, TenantView, UsageView

if TYPE_CHECKING:
    from llmos.sources import Source


class TenantCalls(ABC):
    """Calls about tenants and keys."""

    @abstractmethod
    def _call(
        self,
        method: str,
        *path: str,
        body: object = None,
        params: dict[str, Any] | None = None,
        repeatable: bool = True,
    ) -> Any: ...

    def tenants(self) -> list[TenantView]:
        """Every tenant, by name."""
        return [TenantView(row) for row in self._call("GET", "tenants")]

    def tenant(self, name: str) -> TenantView:
        """One tenant: its limits, what its own jobs hold, and the GPU-hours that they have used."""
        return TenantView(self._call("GET", "tenants", name))

    def put_tenant(self, source: Source, *, new: bool | None = None) -> TenantView:
        """Create or change one Tenant, given in any form that :meth:`submit` takes.

        ``new``: it must not be there yet (True: else ConflictError), or must be (False: else NotFoundError).
        """
        from llmos.sources import one

        spec = one(source, "Tenant")
        body = {"spec": spec, "new": new}
        return TenantView(self._call("PUT", "tenants", spec["name"], body=body, repeatable=new is None))

    def remove_tenant(self, name: str) -> None:
        """Forget a tenant. Raises ConflictError while keys, unfinished jobs or other tenants name it."""
        self._call("DELETE", "tenants", name, repeatable=False)

    def keys(self) -> list[KeyView]:
        """Every API key, without its secret."""
        return [KeyView(row) for row in self._call("GET", "keys")]

    def create_key(
        self,
        name: str,
        scopes: Sequence[str] = ("infer",),
        tenant: str = "default",
        limits: Mapping[str, int | None] | None = None,
    ) -> KeyView:
        """Make an API key of ``tenant``, ``scopes``: infer, submit, admin. Its ``secret`` is in this answer only.

        ``limits`` bound what may be asked of ``/v1`` with it: requests_per_min, tokens_per_min, concurrency.
        """
        body = {"name": name, "scopes": list(scopes), "tenant": tenant, "limits": dict(limits or {})}
        return KeyView(self._call("POST", "keys", body=body, repeatable=False))

    def limit_key(self, key: str, limits: Mapping[str, int | None]) -> KeyView:
        """Change some limits of the key of this id or name; None takes one away."""
        return KeyView(self._call("PATCH", "keys", key, body={"limits": dict(limits)}))

    def revoke_key(self, key_id: str) -> None:
        """Make a key invalid from now on."""
        self._call("DELETE", "keys", key_id)

    def usage(
        self,
        *,
        tenant: str | None = None,
        key: str | None = None,
        service: str | None = None,
        model: str | None = None,
        since: str = "30d",
        by: Sequence[str] = ("tenant", "key", "service"),
    ) -> UsageView:
        """What requests have used since a day (YYYY-MM-DD, UTC) or for so long: ``rows`` by day, tenant, key, service
        or model, and the ``total``; of all, or of one tenant, key (id or name), service or model."""
        only = {"tenant": tenant, "key": key, "service": service, "model": model}
        params = {"since": since, "by": list(by), **{name: one for name, one in only.items() if one is not None}}
        return UsageView(self._call("GET", "usage", params=params))
