"""Chat completions that tenants have kept: ``store: true`` of OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from llmos.control.store.database import Database, Row, rows
from llmos.control.store.tables import completions, tenants
from llmos.errors import CapacityError, NotFoundError

MAX_BYTES = 2 * 2**20
"""Of one completion with its messages."""
PAGE_BYTES = 4 * 2**20
"""Of the completions of one page of a list, unless it has only one."""

VERBS = frozenset({"keeps", "add", "get", "list", "messages", "update", "remove"})
"""What can be asked from outside."""


class Completions:
    """The newest completions of each tenant, which nobody else sees: at most ``kept``, or what its spec says."""

    def __init__(self, database: Database, kept: int | None = None) -> None:
        self._database, self._kept = database, kept

    def call(self, verb: str, tenant: str, arguments: Mapping[str, Any]) -> Any:
        """Carry out one of :data:`VERBS`."""
        if verb not in VERBS:
            raise NotFoundError(f"no verb `{verb[:50]}`: expected one of {', '.join(sorted(VERBS))}")
        return getattr(self, verb)(tenant, **arguments)

    def keeps(self, tenant: str) -> bool:
        """Whether the tenant has storage."""
        with self._database.read() as connection:
            return self._most(connection, tenant) > 0

    def add(self, tenant: str, completion: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> None:
        """Keep ``completion``, which has an ``id``, and what was asked; the oldest ones go when there are too many."""
        size = len(json.dumps([completion, messages]))
        if size > MAX_BYTES:
            raise CapacityError(f"a completion of {size} bytes is not stored: expected at most {MAX_BYTES}")
        row = {
            **{"tenant": tenant, "id": completion["id"], "model": completion["model"]},
            **{"metadata": completion.get("metadata") or {}, "completion": completion, "messages": messages},
        }
        with self._database.write() as connection:
            most = self._most(connection, tenant)
            connection.execute(insert(completions).prefix_with("OR REPLACE").values(row))
            count = select(func.count()).select_from(completions).where(completions.c.tenant == tenant)
            if (over := connection.execute(count).scalar_one() - most) > 0:
                oldest = select(completions.c.id).where(completions.c.tenant == tenant).order_by(completions.c.id)
                old = completions.c.id.in_(oldest.limit(over).scalar_subquery())
                connection.execute(delete(completions).where(completions.c.tenant == tenant, old))

    def get(self, tenant: str, id: str) -> Row:
        """Raises NotFoundError."""
        with self._database.read() as connection:
            return _told(_found(connection, tenant, id))

    def messages(self, tenant: str, id: str) -> list[Row]:
        """What was asked: ``{role, content, name}`` each. Raises NotFoundError."""
        with self._database.read() as connection:
            return list(_found(connection, tenant, id)["messages"])

    def list(
        self,
        tenant: str,
        after: str | None = None,
        limit: int = 20,
        order: str = "asc",
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Row:
        """A page of them: ``{data, has_more}``. At most ``limit``, and of PAGE_BYTES, in the order of their ids, behind
        the id ``after``; all of ``metadata`` holds.

        Ids grow with time, so that this is the order in which they were made, also behind one that is gone.
        """
        upwards = order == "asc"
        this: list[ColumnElement[bool]] = [completions.c.tenant == tenant]
        if after is not None:
            this.append(completions.c.id > after if upwards else completions.c.id < after)
        if model is not None:
            this.append(completions.c.model == model)
        for key, value in (metadata or {}).items():
            pairs = func.json_each(completions.c.metadata).table_valued("key", "value")
            this.append(select(pairs.c.key).where(pairs.c.key == key, pairs.c.value == value).exists())
        size = func.length(completions.c.completion).label("size")  # JSON is stored as ASCII
        query = select(completions.c.completion, completions.c.metadata, size).where(*this).limit(limit + 1)
        with self._database.read() as connection:
            ordered = query.order_by(completions.c.id if upwards else completions.c.id.desc())
            return _page(connection.execute(ordered).mappings(), limit)

    def update(self, tenant: str, id: str, metadata: Mapping[str, str]) -> Row:
        """Label it anew. Raises NotFoundError."""
        with self._database.write() as connection:
            row = _found(connection, tenant, id)
            connection.execute(update(completions).where(*_this(tenant, id)).values(metadata=dict(metadata)))
            return _told({**row, "metadata": dict(metadata)})

    def remove(self, tenant: str, id: str) -> None:
        """Raises NotFoundError."""
        with self._database.write() as connection:
            if not connection.execute(delete(completions).where(*_this(tenant, id))).rowcount:
                raise _unknown(id)

    def _most(self, connection: Connection, tenant: str) -> int:
        if self._kept is not None:
            return self._kept
        spec = connection.execute(select(tenants.c.spec).where(tenants.c.name == tenant)).scalar()
        return int((spec or {}).get("stored_completions") or 0)


def _this(tenant: str, id: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return completions.c.tenant == tenant, completions.c.id == id


def _found(connection: Connection, tenant: str, id: str) -> Row:
    for row in rows(connection, select(completions).where(*_this(tenant, id))):
        return row
    raise _unknown(id)


def _unknown(id: str) -> NotFoundError:
    what = f"no stored completion `{id[:200]}`"
    return NotFoundError(what, hint="Only those of `store: true` are kept, the newest ones.", param="completion_id")


def _page(found: Iterable[Mapping[Any, Any]], limit: int) -> Row:
    """Rows are read one by one: what is not on the page is not in memory."""
    page: list[Row] = []
    room = PAGE_BYTES
    for row in found:
        room -= row["size"]
        if len(page) == limit or (page and room < 0):
            return {"data": page, "has_more": True}
        page.append(_told(row))
    return {"data": page, "has_more": False}


def _told(row: Mapping[Any, Any]) -> Row:
    return {**row["completion"], "metadata": row["metadata"]}
