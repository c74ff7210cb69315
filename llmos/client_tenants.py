"""The part of ``Client`` about who may do what: tenants and keys."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmos.views import KeyView, TenantView

if TYPE_CHECKING:
    from llmos.sources import Source


class TenantCalls(ABC):
    """Calls about tenants and keys."""

    @abstractmethod
    def _call(self, method: str, *path: str, body: object = None, repeatable: bool = True) -> Any: ...

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

    def keys(self) -> list[KeyView]:
        """Every API key, without its secret."""
        return [KeyView(row) for row in self._call("GET", "keys")]

    def create_key(self, name: str, scopes: Sequence[str] = ("infer",), tenant: str = "default") -> KeyView:
        """Make an API key of ``tenant``, ``scopes``: infer, submit, admin. Its ``secret`` is in this answer only."""
        body = {"name": name, "scopes": list(scopes), "tenant": tenant}
        return KeyView(self._call("POST", "keys", body=body, repeatable=False))

    def revoke_key(self, key_id: str) -> None:
        """Make a key invalid from now on."""
        self._call("DELETE", "keys", key_id)
