"""API keys as the store knows them: never the secret, only its SHA-256."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, insert, select, update

from llmos.control.store.database import Database, Row, first, rows
from llmos.control.store.events import append
from llmos.control.store.tables import keys
from llmos.control.store.tenants import require_tenant
from llmos.errors import ConflictError, NotFoundError
from llmos.spec import DEFAULT_TENANT


class Keys:
    """Every key, revoked ones too. A row has the columns of ``tables.keys``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        id: str,
        name: str,
        scopes: Sequence[str],
        secret_sha256: str,
        now: float,
        tenant: str = DEFAULT_TENANT,
        limits: Mapping[str, int] | None = None,
    ) -> Row:
        """Raises NotFoundError if there is no such tenant."""
        row = {
            **{"id": id, "name": name, "scopes": list(scopes), "tenant": tenant, "limits": dict(limits or {})},
            **{"secret_sha256": secret_sha256, "created_at": now},
        }
        with self._database.write() as connection:
            require_tenant(connection, tenant)
            connection.execute(insert(keys).values(row))
            append(connection, now, "key", id, "created", f"{name}: {', '.join(scopes)}; tenant {tenant}")
        return {**row, "revoked_at": None}

    def get(self, id: str) -> Row | None:
        with self._database.read() as connection:
            return first(connection, select(keys).where(keys.c.id == id))

    def find(self, ref: str) -> Row:
        """The key with this id, else the valid one of this name. Raises NotFoundError, and ConflictError if several
        keys have the name."""
        with self._database.read() as connection:
            return _meant(connection, ref)

    def limit(self, ref: str, changes: Mapping[str, int | None], now: float) -> Row:
        """Change some of a key's limits; None takes one away. Raises what :meth:`find` raises."""
        with self._database.write() as connection:
            row = _meant(connection, ref)
            merged = {**row["limits"], **changes}
            limits = {name: most for name, most in merged.items() if most is not None}
            connection.execute(update(keys).where(keys.c.id == row["id"]).values(limits=limits))
            told = ", ".join(f"{name} {most}" for name, most in limits.items())
            append(connection, now, "key", row["id"], "limited", told or "no limits")
        return {**row, "limits": limits}

    def all(self) -> list[Row]:
        """Oldest first."""
        with self._database.read() as connection:
            return rows(connection, select(keys).order_by(keys.c.created_at, keys.c.id))

    def revoke(self, id: str, now: float) -> None:
        """Make a key invalid; doing it again changes nothing.

        Raises NotFoundError, and ConflictError for the last valid key with scope admin: nobody could make another.
        """
        with self._database.write() as connection:
            valid = rows(connection, select(keys).where(keys.c.revoked_at.is_(None)))
            admins = [row["id"] for row in valid if "admin" in row["scopes"]]
            if admins == [id]:
                raise ConflictError(
                    f"key {id} is the last one with scope `admin`: expected another to remain",
                    hint="create one first: `llmos keys create NAME --scope admin`",
                )
            if id in (row["id"] for row in valid):
                connection.execute(update(keys).where(keys.c.id == id).values(revoked_at=now))
                append(connection, now, "key", id, "revoked")
            elif not connection.execute(select(keys.c.id).where(keys.c.id == id)).first():
                raise NotFoundError(f"no key `{id[:200]}`: expected a key's id", hint="see `llmos keys`")


def _meant(connection: Connection, ref: str) -> Row:
    """The key that ``ref``, an id or a name, means."""
    if exact := first(connection, select(keys).where(keys.c.id == ref)):
        return exact
    named = rows(connection, select(keys).where(keys.c.name == ref, keys.c.revoked_at.is_(None)))
    if len(named) > 1:
        what = f"{len(named)} keys are called `{ref[:200]}`: expected the id of one"
        raise ConflictError(what, hint=f"they are {', '.join(row['id'] for row in named[:20])}")
    if not named:
        raise NotFoundError(f"no key `{ref[:200]}`: expected a key's id or name", hint="see `llmos keys`")
    return named[0]
