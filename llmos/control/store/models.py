"""What is registered: versions of models, who made them, who uses them."""

from __future__ import annotations

import re

from sqlalchemy import ColumnElement, Connection, func, insert, select, update

from llmos.control.store.database import Database, Row, first, rows
from llmos.control.store.events import append
from llmos.control.store.tables import jobs, models, services
from llmos.errors import ConflictError, NotFoundError

_LARGEST_VERSION = 10**9


class Models:
    """Every version of every model. A row has the columns of ``tables.models``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[Row]:
        """By name, then by version."""
        query = select(models).where(models.c.removed_at.is_(None)).order_by(models.c.name, models.c.version)
        with self._database.read() as connection:
            return rows(connection, query)

    def removed(self) -> list[Row]:
        """The versions there are no more."""
        with self._database.read() as connection:
            return rows(connection, select(models).where(models.c.removed_at.is_not(None)))

    def find(self, ref: str) -> Row:
        """The version that ``name@version`` or ``name`` (the newest) means. Raises NotFoundError."""
        with self._database.read() as connection:
            return require(connection, ref)

    def of_job(self, job: str) -> Row | None:
        """The version that a job made, also when it has been removed since."""
        with self._database.read() as connection:
            return first(connection, select(models).where(models.c.job == job))

    def next_version(self, name: str) -> int:
        """One more than the largest version there ever was: a version never comes to mean something else."""
        with self._database.read() as connection:
            query = select(func.max(models.c.version)).where(models.c.name == name)
            return (connection.execute(query).scalar() or 0) + 1

    def add(self, row: Row, why: str) -> None:
        """Register a version whose files are in place."""
        with self._database.write() as connection:
            connection.execute(insert(models).values(dict(row)))
            ref = f"{row['name']}@{row['version']}"
            append(connection, row["created_at"], "model", ref, "registered", why)

    def remove(self, ref: str, now: float) -> Row:
        """Forget a version and return what was known of it. Raises ConflictError, naming the user, while it is used."""
        with self._database.write() as connection:
            row = require(connection, ref)
            exact = f"{row['name']}@{row['version']}"
            if user := _user(connection, exact):
                raise ConflictError(
                    f"model {exact} is in use by {user}", hint="remove the service, or let the job end or cancel it"
                )
            this = (models.c.name == row["name"]) & (models.c.version == row["version"])
            connection.execute(update(models).where(this).values(removed_at=now))
            append(connection, now, "model", exact, "removed")
        return row


def require(connection: Connection, ref: str) -> Row:
    """The version that ``ref`` means. Raises NotFoundError."""
    query = select(models).where(_meant(ref)).order_by(models.c.version.desc()).limit(1)
    row = first(connection, query)
    if row is None:
        raise NotFoundError(
            f"no model `{ref[:200]}`: expected `name@version`, or `name` for its newest version",
            hint="see `llmos models`",
            param="model",
        )
    return row


def _meant(ref: str) -> ColumnElement[bool]:
    name, at, version = ref.partition("@")
    wanted = (models.c.name == name) & models.c.removed_at.is_(None)
    if at:
        number = int(version) if re.fullmatch(r"[1-9][0-9]{0,8}", version) else _LARGEST_VERSION
        wanted &= models.c.version == number
    return wanted


def _user(connection: Connection, ref: str) -> str:
    """A service or unfinished job that uses the model, for people; empty if there is none."""
    service = select(services.c.name).where(services.c.model == ref).limit(1)
    if name := connection.execute(service).scalar():
        return f"service {name}"
    job = select(jobs.c.id).where(jobs.c.base_model == ref, jobs.c.ended_at.is_(None)).limit(1)
    return f"job {id}" if (id := connection.execute(job).scalar()) else ""
