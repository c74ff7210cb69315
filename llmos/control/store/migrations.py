"""How a database of an earlier llmos becomes one of this. What it holds stays."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.schema import CreateColumn

from llmos.control.store.tables import metadata, revisions, services, tenants
from llmos.control.translate import bare, deployment_digest
from llmos.spec import DEFAULT_TENANT, Service, Tenant, parse, to_dict


def add_missing(connection: Connection) -> None:
    """Add the tables and columns that came later. Rows that are there get a column's default, so it must have one."""
    metadata.create_all(connection)
    for table in metadata.sorted_tables:
        there = {row[1] for row in connection.exec_driver_sql(f"PRAGMA table_info({table.name})")}
        for column in table.columns:
            if column.name not in there:
                declared = CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {declared}")


def add_default_tenant(connection: Connection) -> None:
    """Add the tenant whose everything is that belongs to nobody else."""
    spec = to_dict(Tenant(name=DEFAULT_TENANT))
    row = {"name": DEFAULT_TENANT, "spec": spec, "created_at": time.time()}
    connection.execute(insert(tenants).prefix_with("OR IGNORE").values(row))


def add_revisions(connection: Connection) -> None:
    """Make what each service runs its first revision."""
    add_missing(connection)  # the step before was there before services had columns about revisions
    for row in connection.execute(select(services)).mappings().all():
        spec = parse(row["spec"])
        assert isinstance(spec, Service)
        first = {"service": row["name"], "number": 1, "digest": deployment_digest(spec), "spec": to_dict(bare(spec))}
        first |= {"model": row["model"], "created_at": row["created_at"]}
        connection.execute(insert(revisions).values(first))
        connection.execute(update(services).where(services.c.name == row["name"]).values(current=1))


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (
    metadata.create_all,
    metadata.create_all,  # with the table of drained nodes
    add_missing,
    add_default_tenant,
    metadata.create_all,  # with the table of stored completions
    add_missing,  # with limits of keys and the usage of requests
    add_revisions,
)
"""Step ``n`` brings a database of version ``n`` to version ``n + 1``; version 0 is an empty file."""
