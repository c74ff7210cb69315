"""What a client is built on, and its calls about the scheduler: who waits for what, and which nodes take work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from llmos.errors import UsageError
from llmos.settings import Connection, normalize_url
from llmos.transport import Transport
from llmos.views import JobView, View

if TYPE_CHECKING:
    import httpx


class Calls:
    """Calls of the HTTP API of the cluster at ``url``, each with ``key``."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        timeout_s: float = 30.0,
        retry_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.connection = Connection(normalize_url(url), key)
        self._api = Transport(self.connection, timeout_s=timeout_s, retry_s=retry_s, transport=transport)

    @classmethod
    def of(cls, connection: Connection) -> Self:
        return cls(connection.url, connection.key)

    def close(self) -> None:
        self._api.close()

    def _call(
        self,
        method: str,
        *path: str,
        body: object = None,
        params: dict[str, Any] | None = None,
        repeatable: bool = True,
    ) -> Any:
        if not all(part.strip(".") for part in path):  # empty, `.` and `..` would name another route
            raise UsageError("a name is missing: expected the id or name of a job, service, model, node or key")
        route = "/api/v1/" + "/".join(quote(part, safe="@") for part in path)
        return self._api.call(method, route, body=body, params=params, repeatable=repeatable)


class SchedulerCalls(Calls):
    """What can be asked of the scheduler, and told it about nodes."""

    def describe(self, job: str) -> JobView:
        """One job, by id or name, with the ``nodes`` it runs on or why and until when it waits, and its ``events``."""
        return JobView(self._call("GET", "jobs", job, "description"))

    def explain(self, job: str) -> View:
        """Why a job waits, and ``ways``: changes after each of which it would start now, the cheapest first."""
        return View(self._call("GET", "jobs", job, "explanation"))

    def queue(self, tenant: str | None = None, limit: int = 1000) -> View:
        """The ``jobs`` that wait, in the order of their turns, the first ``limit`` of ``total``: all, or one tenant's.

        Each has its ``reason`` and, among the first thousand, ``estimated_start``: {p50, p90}.
        """
        return View(self._call("GET", "queue", params=given(tenant=tenant, limit=limit)))

    def drain(self, node: str, why: str = "") -> View:
        """Have ``node`` (its id, or the beginning of it) take no new work, and its jobs go on elsewhere.

        Answers what is on it still: ``jobs`` and ``services``. Replicas of services stay until they are removed.
        """
        return View(self._call("PUT", "nodes", node, "drain", body={"why": why}))

    def undrain(self, node: str) -> View:
        """Have a drained node take work again."""
        return View(self._call("DELETE", "nodes", node, "drain"))

    def status(self) -> View:
        """The cluster at a glance: control module, nodes, GPUs, queues, what waits, services."""
        return View(self._call("GET", "status"))


def given(**params: Any) -> dict[str, Any]:
    """Those that say something."""
    return {name: value for name, value in params.items() if value is not None}
