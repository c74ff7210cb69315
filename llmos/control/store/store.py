"""The store: one database, seen through its kinds of records, and the one place where a plan is written down."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from llmos.control.store.aliases import Aliases
from llmos.control.store.completions import Completions
from llmos.control.store.database import Database, Row
from llmos.control.store.drains import Drains
from llmos.control.store.events import Events, append_all
from llmos.control.store.jobs import Jobs
from llmos.control.store.keys import Keys
from llmos.control.store.models import Models
from llmos.control.store.progress import begin, carry_out
from llmos.control.store.request_usage import RequestUsage
from llmos.control.store.services import Services
from llmos.control.store.tenants import Tenants
from llmos.control.translate import of_unit
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
        self.jobs.mend()
        self.services = Services(self._database)
        self.models = Models(self._database)
        self.aliases = Aliases(self._database, self.services)
        self.keys = Keys(self._database)
        self.drains = Drains(self._database)
        self.tenants = Tenants(self._database)
        self.completions = Completions(self._database)
        self.request_usage = RequestUsage(self._database)
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
        recorded = [action for action in actions if action.verb in (Verb.START, Verb.CLOSE)]
        with self._database.write() as connection:
            told = [_event(now, "job", id, "running") for id in begin(connection, running)]
            carry_out(connection, recorded, now, results or {}, blamed)
            for action in actions:
                kind = "service" if action.verb in (Verb.DEPLOY, Verb.REMOVE) else "job"
                what = _WHAT.get(action.verb) or str(action.phase)
                subject = of_unit(action.id)[0] if kind == "service" else action.id
                told.append(_event(now, kind, subject, what, action.why))
            append_all(connection, told)
        self.jobs.changed(action.id for action in recorded)


def _event(at: float, kind: str, subject: str, what: str, why: str = "") -> Row:
    return {"at": at, "kind": kind, "subject": subject, "what": what, "why": why}
