"""The routes of the control API about who may do what: tenants and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query
from pydantic import Field

from llmos.control.http import PREFIX, Authorization, Body, Name
from llmos.spec import DEFAULT_TENANT, Limits

if TYPE_CHECKING:
    from llmos.control.api import ControlPort


Some = Annotated[str | None, Query(max_length=200)]
_BY = ["tenant", "key", "service"]


class PutTenant(Body):
    spec: dict[str, Any] = Field(description="a Tenant of this name")
    new: bool | None = Field(default=None, description="true: it must not be there yet; false: it must be")


class CreateKey(Body):
    name: str = Field(description="what the key is for")
    scopes: list[str] = Field(default=["infer"], description="some of infer, submit, admin; each contains the former")
    tenant: str = Field(default=DEFAULT_TENANT, description="whose the jobs are that are submitted with it")
    limits: Limits = Field(default=Limits(), description="what may be asked of /v1 with it")


class SetKey(Body):
    limits: Limits = Field(description="what is left out stays; null: no limit")


def add_tenant_routes(app: FastAPI, port: ControlPort) -> None:
    """``/tenants``."""
    base = f"{PREFIX}/tenants"

    @app.get(base, name="list_tenants")
    async def list_tenants(authorization: Authorization = None) -> Any:
        return await port.call("list_tenants", authorization)

    @app.get(f"{base}/{{name}}", name="get_tenant")
    async def get_tenant(name: Name, authorization: Authorization = None) -> Any:
        return await port.call("get_tenant", authorization, name=name)

    @app.put(f"{base}/{{name}}", name="put_tenant")
    async def put_tenant(name: Name, body: PutTenant, authorization: Authorization = None) -> Any:
        return await port.call("put_tenant", authorization, name=name, **body.model_dump())

    @app.delete(f"{base}/{{name}}", name="remove_tenant", status_code=204)
    async def remove_tenant(name: Name, authorization: Authorization = None) -> None:
        await port.call("remove_tenant", authorization, name=name)


def add_usage_routes(app: FastAPI, port: ControlPort) -> None:
    """``/usage``."""

    @app.get(f"{PREFIX}/usage", name="usage")
    async def usage(
        tenant: Some = None,
        key: Some = None,
        service: Some = None,
        model: Some = None,
        since: Annotated[str, Query(max_length=20)] = "30d",
        by: Annotated[list[str], Query(max_length=5)] = _BY,
        authorization: Authorization = None,
    ) -> Any:
        only = {"tenant": tenant, "key": key, "service": service, "model": model}
        return await port.call("usage", authorization, since=since, by=by, **only)


def add_key_routes(app: FastAPI, port: ControlPort) -> None:
    """``/keys``."""
    base = f"{PREFIX}/keys"

    @app.get(base, name="list_keys")
    async def list_keys(authorization: Authorization = None) -> Any:
        return await port.call("list_keys", authorization)

    @app.post(base, name="create_key", status_code=201)
    async def create_key(body: CreateKey, authorization: Authorization = None) -> Any:
        return await port.call("create_key", authorization, **body.model_dump())

    @app.patch(f"{base}/{{id}}", name="set_key")
    async def set_key(id: Name, body: SetKey, authorization: Authorization = None) -> Any:
        return await port.call("set_key", authorization, key=id, limits=body.limits.model_dump(exclude_unset=True))

    @app.delete(f"{base}/{{id}}", name="revoke_key", status_code=204)
    async def revoke_key(id: Name, authorization: Authorization = None) -> None:
        await port.call("revoke_key", authorization, id=id)
