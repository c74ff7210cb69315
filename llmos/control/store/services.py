"""The services that people want."""

from __future__ import annotations

from sqlalchemy import delete, insert, select, update

from llmos.control.store.database import Database, Row, first, rows
from llmos.control.store.events import append
from llmos.control.store.models import require
from llmos.control.store.tables import services
from llmos.control.translate import deployment_digest, replica_gang
from llmos.core.types import Service
from llmos.errors import NotFoundError
from llmos.spec import Service as ServiceSpec
from llmos.spec import parse, to_dict


class Services:
    """Every service. A row has the columns of ``tables.services``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, spec: ServiceSpec, now: float) -> Row:
        """Create the service, or change the one of this name; its model is pinned to the version it means now.

        Raises NotFoundError if there is no such model.
        """
        with self._database.write() as connection:
            model = require(connection, spec.model)
            ref = f"{model['name']}@{model['version']}"
            values = {"spec": to_dict(spec.model_copy(update={"model": ref})), "model": ref}
            this = services.c.name == spec.name
            known = connection.execute(update(services).where(this).values(values)).rowcount
            if not known:
                connection.execute(insert(services).values(name=spec.name, created_at=now, **values))
            what = "changed" if known else "created"
            append(connection, now, "service", spec.name, what, f"{ref}, {spec.replicas.min} replica(s)")
        return self.find(spec.name)

    def find(self, name: str) -> Row:
        """Raises NotFoundError."""
        with self._database.read() as connection:
            row = first(connection, select(services).where(services.c.name == name))
        if row is None:
            raise NotFoundError(f"no service `{name[:200]}`", hint="see `llmos services`")
        return row

    def spec(self, name: str) -> ServiceSpec:
        """What replicas run: the spec, its model pinned. Raises NotFoundError."""
        spec = parse(self.find(name)["spec"])
        assert isinstance(spec, ServiceSpec)
        return spec

    def all(self) -> list[Row]:
        """By name."""
        with self._database.read() as connection:
            return rows(connection, select(services).order_by(services.c.name))

    def remove(self, name: str, now: float) -> None:
        """Raises NotFoundError."""
        self.find(name)
        with self._database.write() as connection:
            if connection.execute(delete(services).where(services.c.name == name)).rowcount:
                append(connection, now, "service", name, "deleted")

    def desired(self) -> tuple[Service, ...]:
        """What ``plan`` decides on."""
        return tuple(_service(row) for row in self.all())


def _service(row: Row) -> Service:
    spec = parse(row["spec"])
    assert isinstance(spec, ServiceSpec)
    return Service(
        spec.name, deployment_digest(spec), replica_gang(spec), spec.replicas.min, created_at=row["created_at"]
    )
