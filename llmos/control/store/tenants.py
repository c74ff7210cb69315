"""Tenants: who jobs and keys belong to, and what each has used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from llmos.control.store.database import Database, Row, first, rows
from llmos.control.store.events import append
from llmos.control.store.statements import Read
from llmos.control.store.tables import jobs, keys, tenants
from llmos.control.translate import tenant
from llmos.core.types import Resources, Tenant
from llmos.errors import ConflictError, NotFoundError
from llmos.spec import DEFAULT_TENANT, parse, to_dict
from llmos.spec import Tenant as TenantSpec

_NAMED = select(tenants).where(tenants.c.name == bindparam("wanted"))
_IS_THERE = Read(select(tenants.c.name).where(tenants.c.name == bindparam("wanted")))
_SHOWN = 5
"""So many of what names a tenant are told by name."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant's own jobs have used as of ``at``: on average, old times decayed, and in GPU-seconds in all."""

    at: float = 0.0
    used: Resources = field(default_factory=Resources)
    spent_gpu_s: float = 0.0


class Tenants:
    """Every tenant. A row has the columns of ``tables.tenants``. There is always the one called ``default``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, spec: TenantSpec, now: float, *, new: bool | None = None) -> Row:
        """Create the tenant, or change the one of this name. ``new``: it must not be there yet (True), or must (False).

        Raises ConflictError and NotFoundError when it is, or is not; NotFoundError for a parent that there is not,
        ConflictError for one that is a part of the tenant itself.
        """
        with self._database.write() as connection:
            parents = {row["name"]: row["spec"].get("parent") for row in rows(connection, select(tenants))}
            _check(spec, parents, new)
            this, values = tenants.c.name == spec.name, {"spec": to_dict(spec)}
            known = spec.name in parents
            if known:
                connection.execute(update(tenants).where(this).values(values))
            else:
                connection.execute(insert(tenants).values(name=spec.name, created_at=now, used_at=now, **values))
            append(connection, now, "tenant", spec.name, "changed" if known else "created", _told(spec))
        return self.find(spec.name)

    def remove(self, name: str, now: float) -> None:
        """Forget a tenant. Its jobs that have ended and its revoked keys stay as they are.

        Raises NotFoundError; ConflictError for ``default``, and while keys, unfinished jobs or other tenants name it.
        """
        with self._database.write() as connection:
            require_tenant(connection, name)
            if name == DEFAULT_TENANT:
                what = f"tenant `{name}` stays: it is whose keys and jobs are that belong to nobody else"
                raise ConflictError(what, hint="remove those that you have made", param="name")
            if uses := _uses(connection, name):
                what = f"tenant `{name}` is still in use, by {' and '.join(uses)}: expected nothing to name it"
                hint = "revoke the keys, cancel the jobs (or let them end), give the tenants another parent"
                raise ConflictError(what, hint=hint, param="name")
            connection.execute(delete(tenants).where(tenants.c.name == name))
            append(connection, now, "tenant", name, "removed")

    def below(self, name: str) -> frozenset[str]:
        """The tenant itself and all that are a part of it, also of its parts."""
        parents = {row["name"]: row["spec"].get("parent") for row in self.all()}
        return frozenset(one for one in {name, *parents} if name in _upwards(one, parents))

    def find(self, name: str) -> Row:
        """Raises NotFoundError."""
        with self._database.read() as connection:
            require_tenant(connection, name)
            return first(connection, _NAMED, {"wanted": name}) or {}

    def limits(self, name: str) -> dict[str, int]:
        """What its own keys together may ask of ``/v1``: the fields of spec.Limits that say something."""
        limits = self.find(name)["spec"].get("limits") or {}
        return {field: most for field, most in limits.items() if most is not None}

    def all(self) -> list[Row]:
        """By name."""
        with self._database.read() as connection:
            return rows(connection, select(tenants).order_by(tenants.c.name))

    def desired(self, usage: Mapping[str, Usage]) -> tuple[Tenant, ...]:
        """What ``plan`` decides on. ``usage`` is newer than what is written down."""
        return tuple(_tenant(row, usage.get(row["name"]) or _usage(row)) for row in self.all())

    def usage(self) -> dict[str, Usage]:
        """What each had used when that was written down last."""
        return {row["name"]: _usage(row) for row in self.all()}

    def save_usage(self, usage: Mapping[str, Usage]) -> None:
        """Write down what tenants have used."""
        with self._database.write() as connection:
            for name, one in usage.items():
                used = {
                    **{"cpus": one.used.cpus, "gpus": one.used.gpus, "memory_bytes": one.used.memory_bytes},
                    "custom": dict(one.used.custom),
                }
                values = {"used": used, "spent_gpu_s": one.spent_gpu_s, "used_at": one.at}
                connection.execute(update(tenants).where(tenants.c.name == name).values(values))


def require_tenant(connection: Connection, name: str) -> None:
    """Raises NotFoundError if there is no tenant ``name``."""
    if _IS_THERE.rows(connection, wanted=name):
        return
    what = f"no tenant `{name[:200]}`: expected one of those that `llmos tenants` lists"
    raise NotFoundError(what, hint="an admin makes one with `llmos tenants create NAME`", param="tenant")


def _uses(connection: Connection, name: str) -> list[str]:
    """What names the tenant, in words."""
    named = {
        "key": select(keys.c.id).where(keys.c.tenant == name, keys.c.revoked_at.is_(None)).order_by(keys.c.id),
        "unfinished job": select(jobs.c.id).where(jobs.c.tenant == name, jobs.c.ended_at.is_(None)).order_by(jobs.c.id),
        "tenant": select(tenants.c.name).where(tenants.c.spec["parent"].as_string() == name).order_by(tenants.c.name),
    }
    found = {what: connection.execute(query).scalars().all() for what, query in named.items()}
    return [_counted(what, ids) for what, ids in found.items() if ids]


def _counted(what: str, ids: Sequence[str]) -> str:
    """``2 keys (a, b)``; the first few of them by name."""
    shown = ", ".join(ids[:_SHOWN]) + (", …" if len(ids) > _SHOWN else "")
    return f"{len(ids):,} {what}{'s' * (len(ids) > 1)} ({shown})"


def _check(spec: TenantSpec, parents: Mapping[str, str | None], new: bool | None) -> None:
    name, parent = spec.name, spec.parent
    if new and name in parents:
        raise ConflictError(f"tenant `{name}` exists already", hint=f"change it: `llmos tenants set {name} …`")
    if new is False and name not in parents:
        raise NotFoundError(f"no tenant `{name}`", hint=f"make it: `llmos tenants create {name}`", param="name")
    if parent is None:
        return
    if parent not in parents:
        what = f"tenant `{name}` cannot be a part of `{parent}`: there is no such tenant"
        raise NotFoundError(what, hint="see `llmos tenants`; make the parent first", param="parent")
    line = [*_upwards(parent, parents)]
    if name in line:
        above = ", which is a part of ".join(f"`{one}`" for one in line[: line.index(name) + 1])
        what = f"tenant `{name}` cannot be a part of {above}: expected no circle"
        raise ConflictError(what, hint="give one of them another parent first", param="parent")


def _upwards(name: str | None, parents: Mapping[str, str | None]) -> Iterator[str]:
    """``name``, its parent, and so on."""
    while name is not None:
        yield name
        name = parents.get(name)


def _told(spec: TenantSpec) -> str:
    """The tenant in words."""
    return ", ".join(f"{name} {value}" for name, value in to_dict(spec).items() if name not in ("kind", "name"))


def _tenant(row: Row, usage: Usage) -> Tenant:
    spec = parse(row["spec"])
    assert isinstance(spec, TenantSpec)
    return tenant(spec, usage.used, usage.spent_gpu_s)


def _usage(row: Row) -> Usage:
    amounts = row["used"]
    used = Resources(
        amounts.get("cpus", 0.0),
        amounts.get("gpus", 0.0),
        amounts.get("memory_bytes", 0),
        tuple(sorted(amounts.get("custom", {}).items())),
    )
    return Usage(row["used_at"], used, row["spent_gpu_s"])
