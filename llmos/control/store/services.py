"""The services that people want, and their revisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from llmos.control.store.database import Database, Row, first, rows
from llmos.control.store.events import append
from llmos.control.store.models import exact, meant_by_alias, require
from llmos.control.store.tables import revisions, services
from llmos.control.translate import NOT_RUN, bare, deployment_digest, of_unit
from llmos.errors import ConflictError, NotFoundError
from llmos.spec import Service as ServiceSpec
from llmos.spec import parse, to_dict

REMEMBERED = 20
"""So many of a service's revisions are kept: what is older and not in use is forgotten."""


@dataclass(frozen=True, slots=True)
class Served:
    """A service: its row, its spec, and what replicas of its revisions run, by number."""

    row: Row
    spec: ServiceSpec
    revisions: Mapping[int, ServiceSpec]


class Services:
    """Every service. A row has the columns of ``tables.services``. What was read is remembered: one process writes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._served: tuple[Served, ...] | None = None

    def put(self, spec: ServiceSpec, now: float) -> Row:
        """Create the service, or change the one of this name; its models are pinned to what they mean now. Its current
        revision is the one that runs what is asked for: a new one, unless it ran that before.

        Raises NotFoundError if there is no such model, ConflictError if a name of it is another service's.
        """
        return self._put(spec, now, follows=spec.model if meant_by_alias(spec.model) else "")

    def change(self, name: str, now: float, **fields: Any) -> Row:
        """Change some fields of a service. An alias that its model follows goes on being followed.

        Raises NotFoundError, and SpecError where the fields do not fit the others.
        """
        row = self.find(name)
        spec = parse({**row["spec"], **fields})
        assert isinstance(spec, ServiceSpec)
        return self._put(spec, now, follows="" if "model" in fields else row["follows"])

    def rollback(self, name: str, now: float) -> Row:
        """End the canary, if there is one; else make the revision before current again. How many replicas there are and
        who may ask stays. Raises NotFoundError, ConflictError if there is none before."""
        row = self.find(name)
        spec = service_spec(row["spec"])
        if spec.canary:
            return self.change(name, now, canary=None)
        served = next(one for one in self.served() if one.row["name"] == name)
        ran = served.revisions.get(row["previous"])
        if ran is None:
            raise ConflictError(
                f"service {name} has run nothing before its revision {row['current']}",
                hint="a rollback undoes the last change of what its replicas run",
            )
        kept = {field: getattr(spec, field) for field in NOT_RUN}
        return self._put(ran.model_copy(update=kept), now, follows=row["follows"])

    def find(self, name: str) -> Row:
        """Raises NotFoundError."""
        with self._database.read() as connection:
            row = first(connection, select(services).where(services.c.name == name))
        if row is None:
            raise NotFoundError(f"no service `{name[:200]}`", hint="see `llmos services`")
        return row

    def spec(self, unit: str) -> ServiceSpec:
        """What replicas of a unit (:func:`llmos.control.translate.unit`) run. Raises NotFoundError."""
        name, number = of_unit(unit)
        with self._database.read() as connection:
            query = select(revisions).where(revisions.c.service == name, revisions.c.number == number)
            row = first(connection, query)
        if row is None:
            raise NotFoundError(f"no service `{name[:200]}` with a revision {number}", hint="see `llmos services`")
        return service_spec(row["spec"])

    def all(self) -> list[Row]:
        """By name."""
        return [served.row for served in self.served()]

    def served(self) -> tuple[Served, ...]:
        """Every service with its revisions, by name."""
        found = self._served
        if found is None:
            with self._database.read() as connection:
                every = rows(connection, select(services).order_by(services.c.name))
                ran = rows(connection, select(revisions).order_by(revisions.c.service, revisions.c.number))
            self._served = found = tuple(
                Served(
                    row,
                    service_spec(row["spec"]),
                    {one["number"]: service_spec(one["spec"]) for one in ran if one["service"] == row["name"]},
                )
                for row in every
            )
        return found

    def remove(self, name: str, now: float) -> None:
        """Raises NotFoundError."""
        self.find(name)
        with self._database.write() as connection:
            if connection.execute(delete(services).where(services.c.name == name)).rowcount:
                connection.execute(delete(revisions).where(revisions.c.service == name))
                append(connection, now, "service", name, "deleted")
        self.changed()

    def changed(self) -> None:
        """Read anew next time: something else has written."""
        self._served = None

    def _put(self, spec: ServiceSpec, now: float, follows: str) -> Row:
        with self._database.write() as connection:
            put(connection, spec, now, follows)
        self.changed()
        return self.find(spec.name)


def put(connection: Connection, spec: ServiceSpec, now: float, follows: str) -> None:
    """See :meth:`Services.put`. ``follows`` is the alias that the model is pinned by, or empty."""
    _check_names(connection, spec)
    update_to: Row = {"model": exact(require(connection, spec.model))}
    if spec.canary:
        canary = spec.canary.model_copy(update={"model": exact(require(connection, spec.canary.model))})
        update_to["canary"] = canary if canary.model != update_to["model"] else None
    spec = spec.model_copy(update=update_to)
    row = first(connection, select(services).where(services.c.name == spec.name))
    current = _revision(connection, spec, now)
    values = {"spec": to_dict(spec), "model": spec.model, "follows": follows, "current": current}
    other = spec.canary and spec.model_copy(update={"model": spec.canary.model})
    values["canary"] = _revision(connection, other, now) if other else None
    if row is None:
        connection.execute(insert(services).values(name=spec.name, created_at=now, **values))
    else:
        values["previous"] = row["previous"] if row["current"] == current else row["current"]
        connection.execute(update(services).where(services.c.name == spec.name).values(values))
    _forget(connection, spec.name)
    what = f"{spec.model}, revision {current}, {spec.replicas.min} to {spec.replicas.max} replica(s)"
    append(connection, now, "service", spec.name, "changed" if row else "created", what)


def service_spec(data: Mapping[str, Any]) -> ServiceSpec:
    """The spec that was stored."""
    spec = parse(data)
    assert isinstance(spec, ServiceSpec)
    return spec


def _check_names(connection: Connection, spec: ServiceSpec) -> None:
    """No name may mean two services."""
    mine = {spec.name, *spec.aliases}
    for row in rows(connection, select(services).where(services.c.name != spec.name)):
        if taken := mine & {row["name"], *row["spec"].get("aliases", ())}:
            raise ConflictError(
                f"`{min(taken)}` is a name of service {row['name']}: expected names that no other service has",
                hint="name another, or take it from that service first",
                param="aliases",
            )


def _revision(connection: Connection, spec: ServiceSpec, now: float) -> int:
    """The number of the revision that runs ``spec``, which is added unless it is known."""
    mine, digest = revisions.c.service == spec.name, deployment_digest(spec)
    known = connection.execute(select(revisions.c.number).where(mine, revisions.c.digest == digest)).scalar()
    if known:
        return int(known)
    number = (connection.execute(select(func.max(revisions.c.number)).where(mine)).scalar() or 0) + 1
    values = {"number": number, "digest": digest, "spec": to_dict(bare(spec)), "model": spec.model, "created_at": now}
    connection.execute(insert(revisions).values(service=spec.name, **values))
    return int(number)


def _forget(connection: Connection, name: str) -> None:
    row = first(connection, select(services).where(services.c.name == name)) or {}
    numbers = select(revisions.c.number).where(revisions.c.service == name).order_by(revisions.c.number.desc())
    old = connection.execute(numbers.offset(REMEMBERED)).scalars().all()
    gone = set(old) - {row.get("current"), row.get("previous"), row.get("canary")}
    if gone:
        connection.execute(delete(revisions).where(revisions.c.service == name, revisions.c.number.in_(gone)))
