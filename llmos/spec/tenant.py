"""``kind: Tenant``: who jobs belong to, and what is theirs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from llmos.spec.base import LARGEST, Amount, Conflict, CustomResources, Name, Size, Strict
from llmos.spec.limits import Limits


class Quota(Strict):
    """The most that a tenant and all below it may hold at once. What is left out is not bounded."""

    cpus: Amount | None = Field(default=None, description="CPU cores")
    gpus: Amount | None = Field(default=None, description="GPUs")
    memory: Size | None = Field(default=None, description="reserved memory, such as 2TiB")
    custom: CustomResources | None = Field(default=None, description="other resources of Ray, by name")


def _own_parent(tenant: Tenant) -> Iterator[Conflict]:
    if tenant.parent == tenant.name:
        yield ("parent",), f"`parent: {tenant.parent}` is the tenant itself: expected another one, or none"


class Tenant(Strict):
    """A team, or a part of one: jobs and keys belong to tenants. Limits count for all tenants below it together."""

    kind: Literal["Tenant"] = "Tenant"
    name: Name = Field(description="the tenant's name")
    parent: Name | None = Field(default=None, description="the tenant that it is a part of")
    share: float = Field(
        default=1.0, gt=0, le=LARGEST, description="its weight beside its siblings: what part of the cluster is its own"
    )
    borrow_limit: float | None = Field(
        default=None,
        ge=0,
        le=LARGEST,
        description="how much more than its own part it may hold, as a fraction of that; all there is if absent",
    )
    quota: Quota | None = Field(default=None, description="the most that it may hold at once; all there is if absent")
    budget: float | None = Field(
        default=None, ge=0, le=LARGEST, description="GPU-hours that it may use in all; no bound if absent"
    )
    stored_completions: int | None = Field(
        default=None,
        ge=0,
        le=100_000,
        description="the newest chat completions that are kept of requests with `store: true`; none are kept if absent",
    )
    limits: Limits | None = Field(default=None, description="what its own keys together may ask of `/v1`")

    rules = (_own_parent,)
