"""What is registered: versions of models, who made them, who uses them."""

from __future__ import annotations

import re

from sqlalchemy import ColumnElement, Connection, Select, func, insert, select, update

from llmos.control.store.database import Database, Row, first, rows
from llmos.control.store.events import append
from llmos.control.store.tables import aliases, jobs, models, revisions, services
from llmos.errors import ConflictError, NotFoundError
from llmos.spec.base import is_alias

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
        """The version that ``name@version``, ``name@alias`` or ``name`` (the newest) means. Raises NotFoundError."""
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
            append(connection, row["created_at"], "model", exact(row), "registered", why)

    def remove(self, ref: str, now: float) -> Row:
        """Forget a version and return what was known of it. Raises ConflictError, naming the user, while it is used."""
        with self._database.write() as connection:
            row = require(connection, ref)
            if user := _user(connection, row):
                hint = "remove the service, have the alias mean another version, or let the job end or cancel it"
                raise ConflictError(f"model {exact(row)} is in use by {user}", hint=hint)
            this = (models.c.name == row["name"]) & (models.c.version == row["version"])
            connection.execute(update(models).where(this).values(removed_at=now))
            append(connection, now, "model", exact(row), "removed")
        return row


def require(connection: Connection, ref: str) -> Row:
    """The version that ``ref`` means. Raises NotFoundError."""
    query = select(models).where(_meant(ref)).order_by(models.c.version.desc()).limit(1)
    row = first(connection, query)
    if row is None:
        raise NotFoundError(
            f"no model `{ref[:200]}`: expected `name@version`, `name@alias`, or `name` for its newest version",
            hint="see `llmos models`",
            param="model",
        )
    return row


def exact(row: Row) -> str:
    """``name@version`` of a row."""
    return f"{row['name']}@{row['version']}"


def meant_by_alias(ref: str) -> bool:
    """Whether ``ref`` is ``name@alias``."""
    return is_alias(ref.partition("@")[2])


def alias_version(name: str, alias: str) -> Select[tuple[int]]:
    """The version that ``name@alias`` means: no row if there is no such alias."""
    mine = (aliases.c.model == name) & (aliases.c.alias == alias) & aliases.c.undone_at.is_(None)
    return select(aliases.c.version).where(mine).order_by(aliases.c.id.desc()).limit(1)


def _meant(ref: str) -> ColumnElement[bool]:
    name, at, version = ref.partition("@")
    wanted = (models.c.name == name) & models.c.removed_at.is_(None)
    if is_alias(version):
        wanted &= models.c.version == alias_version(name, version).scalar_subquery()
    elif at:
        number = int(version) if re.fullmatch(r"[1-9][0-9]{0,8}", version) else _LARGEST_VERSION
        wanted &= models.c.version == number
    return wanted


def _user(connection: Connection, row: Row) -> str:
    """A service, alias or unfinished job that uses the model, for people; empty if there is none."""
    ref = exact(row)
    used = (revisions.c.number == services.c.current) | (revisions.c.number == services.c.canary)
    service = select(services.c.name).join(revisions, (revisions.c.service == services.c.name) & used)
    if name := connection.execute(service.where(revisions.c.model == ref).limit(1)).scalar():
        return f"service {name}"
    named = select(aliases.c.alias).where(aliases.c.model == row["name"], aliases.c.undone_at.is_(None)).distinct()
    for alias in connection.execute(named).scalars().all():
        if connection.execute(alias_version(row["name"], alias)).scalar() == row["version"]:
            return f"alias {row['name']}@{alias}"
    job = select(jobs.c.id).where(jobs.c.base_model == ref, jobs.c.ended_at.is_(None)).limit(1)
    return f"job {id}" if (id := connection.execute(job).scalar()) else ""
