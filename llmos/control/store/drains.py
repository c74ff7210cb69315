"""The nodes that people have drained: they take no work until somebody says otherwise, or they are gone."""

from __future__ import annotations

from sqlalchemy import delete, insert, select, update

from llmos.control.store.database import Database, Row, rows
from llmos.control.store.events import append
from llmos.control.store.tables import drained


class Drains:
    """The drained nodes. A row has the columns of ``tables.drained``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> dict[str, Row]:
        """Every one by its node's id: ``{node, at, why}``."""
        with self._database.read() as connection:
            return {row["node"]: row for row in rows(connection, select(drained).order_by(drained.c.node))}

    def add(self, node: str, at: float, why: str) -> None:
        """Drain ``node``. One that is drained already keeps its time; a new reason takes the place of the old one."""
        with self._database.write() as connection:
            this = drained.c.node == node
            before = connection.execute(select(drained.c.why).where(this)).scalar()
            if before is None:
                connection.execute(insert(drained).values(node=node, at=at, why=why))
                append(connection, at, "node", node, "drained", why)
            elif why and why != before:
                connection.execute(update(drained).where(this).values(why=why))
                append(connection, at, "node", node, "drained", why)

    def remove(self, node: str, at: float, what: str, why: str = "") -> None:
        """``node`` is drained no more; ``what`` happened. One that was not stays as it is."""
        with self._database.write() as connection:
            if connection.execute(delete(drained).where(drained.c.node == node)).rowcount:
                append(connection, at, "node", node, what, why)
