"""Aliases: names such as ``coder@prod`` that mean one version of a model, now this one, then another.

What an alias has meant stays on record. Services whose model is an alias follow it: they are changed in the very
transaction in which the alias is.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, insert, select, update

from llmos.control.store.database import Database, Row, rows
from llmos.control.store.events import append
from llmos.control.store.models import alias_version, require
from llmos.control.store.services import Services, put, service_spec
from llmos.control.store.tables import aliases, services
from llmos.errors import ConflictError, NotFoundError


class Aliases:
    """Every alias. A row has the columns of ``tables.aliases``."""

    def __init__(self, database: Database, served: Services) -> None:
        self._database = database
        self._services = served

    def all(self) -> dict[tuple[str, str], int]:
        """The version that each (model, alias) means."""
        query = select(aliases).where(aliases.c.undone_at.is_(None)).order_by(aliases.c.id)
        with self._database.read() as connection:
            return {(row["model"], row["alias"]): row["version"] for row in rows(connection, query)}

    def history(self, model: str, alias: str) -> list[Row]:
        """What the alias has meant, oldest first; what was undone has ``undone_at``."""
        mine = (aliases.c.model == model) & (aliases.c.alias == alias)
        with self._database.read() as connection:
            return rows(connection, select(aliases).where(mine).order_by(aliases.c.id))

    def set(self, model: str, alias: str, target: str, now: float) -> None:
        """Have ``model@alias`` mean the version that ``target`` does. Raises NotFoundError; ConflictError if that is
        another model's."""
        with self._database.write() as connection:
            found = require(connection, target)
            if found["name"] != model:
                what = f"`{target}` is a version of {found['name']}: expected one of {model}, as in `{model}@1`"
                raise ConflictError(what, hint=f"an alias of it would be `{found['name']}@{alias}`", param="target")
            if connection.execute(alias_version(model, alias)).scalar() == found["version"]:
                return
            values = {"model": model, "alias": alias, "version": found["version"], "created_at": now}
            connection.execute(insert(aliases).values(values))
            self._moved(connection, model, alias, now, "set")
        self._services.changed()

    def undo(self, model: str, alias: str, now: float) -> None:
        """Have the alias mean what it did before. Raises NotFoundError, ConflictError if it meant nothing."""
        with self._database.write() as connection:
            newest, *before = self._meanings(connection, model, alias)
            if not before:
                what = f"{model}@{alias} has never meant anything but version {newest['version']}"
                raise ConflictError(what, hint=f"set it with `llmos models alias {model}@{alias} VERSION`")
            require(connection, f"{model}@{before[0]['version']}")
            connection.execute(update(aliases).where(aliases.c.id == newest["id"]).values(undone_at=now))
            self._moved(connection, model, alias, now, "rolled_back")
        self._services.changed()

    def remove(self, model: str, alias: str, now: float) -> None:
        """Raises NotFoundError, ConflictError while a service follows it."""
        with self._database.write() as connection:
            meanings = self._meanings(connection, model, alias)
            if name := connection.execute(select(services.c.name).where(_follow(model, alias)).limit(1)).scalar():
                raise ConflictError(
                    f"service {name} follows {model}@{alias}", hint="have it serve a version, or remove it"
                )
            ids = [row["id"] for row in meanings]
            connection.execute(update(aliases).where(aliases.c.id.in_(ids)).values(undone_at=now))
            append(connection, now, "model", f"{model}@{alias}", "removed")

    def _meanings(self, connection: Connection, model: str, alias: str) -> list[Row]:
        """Those that are not undone, the newest first. Raises NotFoundError if there are none."""
        mine = (aliases.c.model == model) & (aliases.c.alias == alias) & aliases.c.undone_at.is_(None)
        found = rows(connection, select(aliases).where(mine).order_by(aliases.c.id.desc()))
        if not found:
            raise NotFoundError(f"no alias `{model[:100]}@{alias[:100]}`", hint="see `llmos models`", param="alias")
        return found

    def _moved(self, connection: Connection, model: str, alias: str, now: float, what: str) -> None:
        """Change the services that follow the alias."""
        name, version = f"{model}@{alias}", connection.execute(alias_version(model, alias)).scalar()
        append(connection, now, "model", name, what, f"means {model}@{version}")
        for row in rows(connection, select(services).where(_follow(model, alias))):
            spec = service_spec(row["spec"]).model_copy(update={"model": name})
            put(connection, spec, now, follows=name)


def _follow(model: str, alias: str) -> ColumnElement[bool]:
    return services.c.follows == f"{model}@{alias}"
