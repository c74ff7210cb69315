"""The control module's verbs: every one a method that returns JSON-able values and raises leaves of ``errors``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import llmos
from llmos.control import admission, functions, journal, overview
from llmos.control import estimate as estimates
from llmos.control.access import Access
from llmos.control.accounts import Accounts
from llmos.control.auth import Key
from llmos.control.capacity import placed
from llmos.control.describe import job_files, job_view
from llmos.control.loop import Loop
from llmos.control.outlook import described, explained
from llmos.control.possible import check_possible
from llmos.control.registry import Registry
from llmos.control.serving_verbs import ServingVerbs
from llmos.control.store import Store
from llmos.control.tenants import tenant_views
from llmos.core.capacity import ModelShape
from llmos.core.types import JobPhase
from llmos.errors import UsageError
from llmos.layout import Layout
from llmos.models import ModelConfig
from llmos.spec import TrainJob, digest

View = dict[str, Any]

SCOPE_OF: Mapping[str, str] = {
    **dict.fromkeys(("submit_job", "put_function", "list_jobs", "get_job", "cancel_job"), "submit"),
    **dict.fromkeys(("job_events", "job_logs", "job_metrics"), "submit"),
    **dict.fromkeys(("describe_job", "explain_job", "list_queue"), "submit"),
    **dict.fromkeys(("drain_node", "undrain_node"), "admin"),
    **dict.fromkeys(("list_services", "get_service", "put_service", "delete_service"), "submit"),
    **dict.fromkeys(("weigh_service", "rollback_service", "service_events"), "submit"),
    **dict.fromkeys(("list_models", "get_model", "get_alias"), "submit"),
    **dict.fromkeys(("import_model", "export_model", "remove_model"), "admin"),
    **dict.fromkeys(("set_alias", "rollback_alias", "remove_alias"), "admin"),
    **dict.fromkeys(("list_tenants", "get_tenant"), "submit"),
    **dict.fromkeys(("put_tenant", "remove_tenant", "list_keys", "create_key", "set_key", "revoke_key"), "admin"),
    **dict.fromkeys(("status", "estimate", "usage"), "submit"),
}
"""The scope that each verb needs: all that can be called from outside, and nothing else."""
_TOLD_WHO_ASKS = {"submit_job": "key", "usage": "asked_by"}
"""Verbs that are given the key, and what they call it."""


class Control(ServingVerbs, Accounts):
    """What can be asked of the cluster. Methods are safe to call from any thread.

    :meth:`call` is the way in for requests from outside; the methods themselves ask for no key.
    """

    def __init__(
        self, store: Store, registry: Registry, loop: Loop, layout: Layout, clock: Callable[[], float] = time.time
    ) -> None:
        ServingVerbs.__init__(self, store, registry, loop, layout, clock)
        Accounts.__init__(self, store, clock)
        self._access = Access(store)
        self._started_at = clock()

    def call(self, verb: str, authorization: str | None, **arguments: Any) -> Any:
        """Carry out ``verb`` for whoever sent the header ``authorization``, if their key allows it."""
        key = self._auth.authorize(authorization, SCOPE_OF[verb])
        arguments = self._access.bounded(key, verb, arguments)
        if verb in _TOLD_WHO_ASKS:
            arguments[_TOLD_WHO_ASKS[verb]] = key
        return getattr(self, verb)(**arguments)

    # Jobs

    def submit_job(
        self,
        spec: Mapping[str, Any],
        idempotency_key: str | None = None,
        allow_pending: bool = False,
        key: Key | None = None,
    ) -> View:
        """Accept a TrainJob or TrainFunction; durable on return. The same key of a tenant again gives the same job.

        It belongs to the tenant of ``key``, an admin's to the one that it names. What could never start on this cluster
        is refused, unless ``allow_pending``.
        """
        job = admission.owned(admission.job(spec, self._layout), key)
        asked = digest(job)
        if isinstance(job, TrainJob):
            base = self._registry.get(job.model.ref) if job.model.ref else None
            job = admission.pinned(job, base["ref"]) if base else job
            job = placed(job, Path(base["path"]) if base else None, self._loop.sight.snapshot.nodes)
        if idempotency_key is not None:  # tenants choose theirs without knowing of one another
            idempotency_key = f"{job.tenant}/{idempotency_key}"
        if not (allow_pending or self._store.jobs.known(idempotency_key)):
            check_possible(job, self._loop.sight)
        tenants = self._access.tenants(key) if job.after else None
        row = self._store.jobs.submit(job, asked, idempotency_key, self._clock(), tenants)
        self._loop.nudge()
        return self._job(row)

    def put_function(self, sha256: str, pickle: str) -> View:
        """Keep a function (its bytes in base64) for jobs to name by its SHA-256, until those that do have ended. It is
        not looked into."""
        return functions.keep(self._layout, sha256, pickle, self._clock())

    def list_jobs(
        self, tenant: str | None = None, state: str | None = None, tenants: Collection[str] | None = None
    ) -> list[View]:
        """The jobs, newest first: all, or those of one tenant, or of ``tenants``, or in one phase."""
        if state is not None and state not in {phase.value for phase in JobPhase}:
            phases = ", ".join(JobPhase)
            raise UsageError(f"no job is ever `{state[:50]}`: expected one of {phases}", param="state")
        return [self._job(row) for row in self._store.jobs.all(state, tenants if tenant is None else [tenant])]

    def get_job(self, job: str) -> View:
        """One job, by id or by name (its newest job), with the files of its newest attempt."""
        row = self._store.jobs.find(job)
        return self._job(row) | job_files(row, self._layout)

    def describe_job(self, job: str) -> View:
        """One job with where it runs or why it waits, when it is expected to start, and its events."""
        row = self._store.jobs.find(job)
        more = described(row, self._loop.sight, self._store.drains.all()) | {"events": self.job_events(row["id"])}
        return self._job(row) | job_files(row, self._layout) | more

    def explain_job(self, job: str) -> View:
        """Why a job waits, and what would let it start now: the plan is asked with one thing changed at a time."""
        return explained(self._store.jobs.find(job), self._loop.sight)

    def list_queue(self, tenant: str | None = None, limit: int = 1000, tenants: Collection[str] | None = None) -> View:
        """Who waits, in the order of their turns, the first ``limit`` of them, with why and until when: all, or those
        of one tenant, or of ``tenants``."""
        wanted = tenants if tenant is None else overview.queued_tenant(tenant, self._loop.sight)
        return overview.queue_view(self._loop.sight, self._store.drains.all(), wanted, limit)

    def training(self) -> list[View]:
        """``{id, metrics}`` of the jobs that an attempt is open of: what Prometheus is told."""
        jobs = [job for job in self._store.jobs.unfinished() if job.attempt]
        return [
            {"id": job.id, "metrics": journal.newest_metrics(self._layout.job(job.id), job.attempts)} for job in jobs
        ]

    def cancel_job(self, job: str) -> View:
        """Ask a job to end; one that has ended stays as it is."""
        row = self._store.jobs.cancel(job, self._clock())
        self._loop.nudge()
        return self._job(row) | job_files(row, self._layout)

    def job_events(self, job: str) -> list[View]:
        """What was decided about a job and what happened to it, oldest first: ``{at, subject, what, why}``."""
        row = self._store.jobs.find(job)
        happened = journal.read_events(self._layout.job(row["id"]), row["attempts"])
        told = [*self._store.events.of("job", row["id"]), *({"subject": row["id"], **event} for event in happened)]
        return sorted(told, key=lambda event: event["at"])

    def job_logs(self, job: str, offset: int = 0) -> View:
        """``{text, offset, final}``: the next piece of the logs of all its attempts."""
        row = self._store.jobs.find(job)
        final = JobPhase(row["phase"]).final
        return journal.read_log(self._layout.job(row["id"]), row["attempts"], offset, final=final)

    def job_metrics(self, job: str, after: int = 0) -> View:
        """``{rows, final}``: the rows of steps after ``after``."""
        row = self._store.jobs.find(job)
        rows = journal.read_metrics(self._layout.job(row["id"]), row["attempts"], after)
        return {"rows": rows, "final": JobPhase(row["phase"]).final}

    # Tenants and the cluster

    def list_tenants(self) -> list[View]:
        """Every tenant, by name: its spec, what it holds and has used."""
        return tenant_views(self._store.tenants.all(), self._loop.sight, self._loop.knowledge.usage)

    def get_tenant(self, name: str) -> View:
        found = [self._store.tenants.find(name)]
        return tenant_views(found, self._loop.sight, self._loop.knowledge.usage)[0]

    def put_tenant(self, name: str, spec: Mapping[str, Any], new: bool | None = None) -> View:
        """Create the tenant ``name``, or change it. ``new``: it must not be there yet (true), or must be (false)."""
        self._store.tenants.put(admission.tenant(name, spec), self._clock(), new=new)
        self._loop.nudge()
        return self.get_tenant(name)

    def completions(self, verb: str, tenant: str, arguments: Mapping[str, Any]) -> Any:
        """Carry out a verb of :class:`llmos.control.store.completions.Completions` for whoever has been let in."""
        return self._store.completions.call(verb, tenant, arguments)

    def remove_tenant(self, name: str) -> None:
        """Forget a tenant that nobody is a part of. Raises ConflictError while keys, tenants or jobs name it."""
        self._store.tenants.remove(name, self._clock())
        self._loop.knowledge.usage.forget(name)
        self._loop.nudge()

    def status(self, tenants: Collection[str] | None = None) -> View:
        """The cluster at a glance. Those that wait are named if they are of ``tenants``."""
        sight = self._loop.sight
        nodes = overview.node_views(sight, self._store.drains.all())
        return {
            "control": {
                **{"pid": os.getpid(), "version": llmos.__version__, "error": sight.error},
                **{"started_at": self._started_at, "uptime_s": self._clock() - self._started_at},
            },
            "nodes": nodes,
            "gpus": overview.totals(nodes, "gpus", overview.lent_gpus(sight)),
            "cpus": overview.totals(nodes, "cpus"),
            "kinds": overview.kind_views(sight),
            "jobs": self._store.jobs.counts(),
            "queues": overview.queue_counts(sight),
            "waiting": overview.first_waiting(sight, tenants),
            "services": self.list_services(),
        }

    def drain_node(self, node: str, why: str = "") -> View:
        """Have a node take no new work and its jobs go on elsewhere, until :meth:`undrain_node`. A node is named by its
        id, or the beginning of it."""
        id = overview.found_node(node, self._loop.sight, self._store.drains.all())
        self._store.drains.add(id, self._clock(), why)
        self._loop.nudge()
        return self._node(id)

    def undrain_node(self, node: str) -> View:
        """Have a drained node take work again."""
        id = overview.found_node(node, self._loop.sight, self._store.drains.all())
        self._store.drains.remove(id, self._clock(), "undrained")
        self._loop.nudge()
        return self._node(id)

    def estimate(self, model: str, options: Mapping[str, Any]) -> View:
        """What a preset, a size or a registered model takes to train or to serve; ``options`` of ``llmos.estimate``."""
        shape = estimates.named(model) or ModelShape.of(ModelConfig.load(self._registry.get(model)["path"]))
        return estimates.view(estimates.asked(shape, estimates.question(options), self._layout))

    def _job(self, row: View) -> View:
        return job_view(row, self._layout, self._loop.sight)

    def _node(self, id: str) -> View:
        """Whether a node is drained, what is on it, and what happened to it."""
        drained = self._store.drains.all().get(id)
        return {
            **{"id": id, "drained": drained is not None, "since": drained and drained["at"]},
            **{"why": drained["why"] if drained else ""},
            **overview.node_work(id, self._loop.sight),
            **{"events": self._store.events.of("node", id)},
        }
