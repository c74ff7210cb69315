"""The store: one database, seen through its kinds of records, and the one place where a plan is written down."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from llmos.control.store.database import Database
from llmos.control.store.drains import Drains
from llmos.control.store.events import Events, append
from llmos.control.store.jobs import Jobs, begin, carry_out
from llmos.control.store.keys import Keys
from llmos.control.store.models import Models
from llmos.control.store.services import Services
from llmos.control.store.tenants import Tenants
from llmos.core.types import Action, Verb
from llmos.layout import Layout

_WHAT = {Verb.START: "starting", Verb.STOP: "stopping", Verb.DEPLOY: "deploying", Verb.REMOVE: "removing"}


class Store:
    """``control.db`` of a state directory. Safe to use from any thread; what a method has changed is durable.

    Raises ConflictError if a newer llmos has written the file, DataError if it is damaged.
    """

    def __init__(self, layout: Layout) -> None:
        self._database = Database(layout.database)
        self.jobs = Jobs(self._database, layout)
        self.services = Services(self._database)
        self.models = Models(self._database)
        self.keys = Keys(self._database)
        self.drains = Drains(self._database)
        self.tenants = Tenants(self._database)
        self.events = Events(self._database)

    def close(self) -> None:
        self._database.close()

    def record(
        self,
        actions: Iterable[Action],
        now: float,
        *,
        running: Iterable[str] = (),
        results: Mapping[str, Mapping[str, Any]] | None = None,
        blamed: Collection[str] = (),
    ) -> None:
        """Write down what was decided, and that the jobs ``running`` run, with an event for each: all or nothing.

        ``results`` gives, by job id, columns that a CLOSE fills in (``model``, ``metrics``, ``measured``). ``blamed``
        are the jobs whose attempt failed, and the nodes of it may be why.
        """
        actions = list(actions)
        with self._database.write() as connection:
            for id in running:
                if begin(connection, id):
                    append(connection, now, "job", id, "running")
            for action in actions:
                kind = "service" if action.verb in (Verb.DEPLOY, Verb.REMOVE) else "job"
                if action.verb in (Verb.START, Verb.CLOSE):
                    result = (results or {}).get(action.id, {})
                    carry_out(connection, action, now, result, blamed=action.id in blamed)
                append(connection, now, kind, action.id, _WHAT.get(action.verb) or str(action.phase), action.why)
        self.jobs.changed(action.id for action in actions if action.verb in (Verb.START, Verb.CLOSE))
