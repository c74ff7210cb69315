"""The Python API: the verbs of the control HTTP API, and text from the models that the cluster serves.

import llmos
cluster = llmos.connect()
job = cluster.submit("job.yaml")
cluster.wait(job.id, on_progress=lambda job, rows: print(job))
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from llmos.client_calls import SchedulerCalls, given
from llmos.client_tenants import TenantCalls
from llmos.errors import DeadlineError, UsageError
from llmos.settings import connection
from llmos.views import EventView, JobView, MetricsRow, ModelView, ServiceView, View

if TYPE_CHECKING:
    from openai import OpenAI

    from llmos.sources import Source
    from llmos.train.context import Context

POLL_S = 0.5

OnProgress = Callable[[JobView, list[MetricsRow]], None]
OnService = Callable[[ServiceView], None]
Loop = Callable[["Context"], object]


def connect(url: str | None = None, key: str | None = None) -> Client:
    """A client of the cluster at ``url`` (default: ``LLMOS_URL``, else what ``llmos up`` or ``llmos login`` stored)."""
    return Client.of(connection(url, key))


class Client(SchedulerCalls, TenantCalls):
    """One cluster, seen through its front door at ``url``. Every method raises leaves of ``llmos.errors``."""

    def __repr__(self) -> str:
        return f"<llmos.Client {self.connection.url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Jobs

    def submit(self, source: Source, *, idempotency_key: str | None = None, allow_pending: bool = False) -> JobView:
        """Submit one job: a spec, a dict, a file, or YAML text (a string with more than one line).

        Every retry carries the same ``idempotency_key`` (made up unless given), so one call never makes two jobs.
        A job that could never start on this cluster is refused, unless ``allow_pending``.
        """
        from llmos.sources import one

        spec = one(source, "TrainJob", "TrainFunction")
        body = {"spec": spec, "idempotency_key": idempotency_key or uuid.uuid4().hex, "allow_pending": allow_pending}
        return JobView(self._call("POST", "jobs", body=body))

    def jobs(self, tenant: str | None = None, state: str | None = None) -> list[JobView]:
        """The jobs, newest first: all, or those of one tenant, or in one phase."""
        return [JobView(row) for row in self._call("GET", "jobs", params=given(tenant=tenant, state=state))]

    def job(self, job: str) -> JobView:
        """One job, by id or by name (its newest job)."""
        return JobView(self._call("GET", "jobs", job))

    def cancel(self, job: str) -> JobView:
        """Ask a job to end. It keeps its checkpoints and logs; its phase becomes ``cancelled`` soon after."""
        return JobView(self._call("POST", "jobs", job, "cancel"))

    def events(self, job: str) -> list[EventView]:
        """What happened to a job and why, oldest first."""
        return [EventView(row) for row in self._call("GET", "jobs", job, "events")]

    def metrics(self, job: str, after: int = 0) -> list[MetricsRow]:
        """The rows of a job's metrics with a step greater than ``after``, in the order they were written."""
        return [MetricsRow(row) for row in self._call("GET", "jobs", job, "metrics", params={"after": after})["rows"]]

    def logs(self, job: str, follow: bool = False) -> Iterator[str]:
        """The lines a job has written. With ``follow``, goes on until the job has ended and everything was read."""
        job, offset, rest = self.job(job).id, 0, ""  # a name means its newest job: stay with the one it was at first
        while True:
            piece = self._call("GET", "jobs", job, "logs", params={"offset": offset})
            offset = piece["offset"]
            *lines, rest = (rest + piece["text"]).split("\n")
            yield from lines
            if not piece["text"]:
                if piece["final"] or not follow:
                    break
                time.sleep(POLL_S)
        if rest:
            yield rest

    def wait(self, job: str, timeout_s: float | None = None, on_progress: OnProgress | None = None) -> JobView:
        """Wait until a job has ended and return it. ``on_progress`` sees it and its new metrics rows, twice a second.

        Raises DeadlineError after ``timeout_s`` seconds. A job that failed is returned, not raised: see its ``reason``.
        """
        deadline, after = _deadline(timeout_s), 0
        while True:
            view = self.job(job)
            job = view.id  # a name means its newest job: stay with the one it was at first
            if on_progress:
                rows = self.metrics(view.id, after)
                after = max([after, *(row.step for row in rows)])
                on_progress(view, rows)
            if view.final:
                return view
            _pause(deadline, f"job {job} is still {view.phase}", "it goes on; wait again, or cancel it")

    def train(self, source: Source | None = None, *, on_progress: OnProgress | None = None, **fields: Any) -> JobView:
        """Submit one TrainJob, watch it until it has ended, and return it: its ``model`` is registered.

        The job is given in any form that :meth:`submit` takes, or by its fields, or both, which changes those fields:
        ``train(name="coder", model={"preset": "tiny"}, data={"path": "src/*.py"}, steps=400, mesh={"dp": 2})``. Without
        ``on_progress`` it prints how it gets on. Ctrl-C leaves the job running. Raises TrainingError when it fails.
        """
        from llmos.client_jobs import ended, job_of

        return ended(self, self.submit(job_of(source, fields)).id, on_progress)

    def train_function(
        self, function: Loop, *, wait: bool = True, on_progress: OnProgress | None = None, **fields: Any
    ) -> JobView:
        """Have the workers of a job call ``function(context)``, watch it as :meth:`train` does, and return it.

        ``fields`` are a TrainFunction's: ``train_function(loop, workers=2, steps=100)``. ``wait=False`` only submits.
        """
        from llmos.client_jobs import ended
        from llmos.functions import packed_job

        packed, spec = packed_job(function, fields)
        self._call("PUT", "functions", packed.sha256, body={"pickle": packed.base64})
        job = self.submit(spec)
        return ended(self, job.id, on_progress) if wait else job

    # Services

    def services(self) -> list[ServiceView]:
        """Every service."""
        return [ServiceView(row) for row in self._call("GET", "services")]

    def service(self, name: str) -> ServiceView:
        """One service, by name."""
        return ServiceView(self._call("GET", "services", name))

    def serve(self, source: Source) -> ServiceView:
        """Create or change one Service, given in any form that :meth:`submit` takes."""
        from llmos.sources import one

        spec = one(source, "Service")
        return ServiceView(self._call("PUT", "services", spec["name"], body={"spec": spec}))

    def remove_service(self, name: str) -> None:
        """Stop a service's replicas and forget it. Its model stays registered."""
        self._call("DELETE", "services", name)

    def set_weight(self, name: str, weight: float) -> ServiceView:
        """Give a service's canary another share of the requests: 0 ends it, 1 makes it the service's model."""
        return ServiceView(self._call("PUT", "services", name, "weight", body={"weight": weight}))

    def rollback_service(self, name: str) -> ServiceView:
        """End a service's canary or, if it has none, have it run what it ran before."""
        return ServiceView(self._call("POST", "services", name, "rollback", repeatable=False))

    def service_events(self, name: str) -> list[EventView]:
        """What happened to a service and why, oldest first."""
        return [EventView(row) for row in self._call("GET", "services", name, "events")]

    def wait_service(self, name: str, timeout_s: float = 300.0, on_progress: OnService | None = None) -> ServiceView:
        """Return a service once every replica answers, or it waits at zero for requests.

        Raises DeadlineError after ``timeout_s`` seconds.
        """
        deadline = _deadline(timeout_s)
        while True:
            view = self.service(name)
            if on_progress:
                on_progress(view)
            if view.is_ready:
                return view
            _pause(
                deadline, f"service {name} is not ready: {view.message or view.phase}", "see `llmos services describe`"
            )

    # Models

    def models(self) -> list[ModelView]:
        """Every version of every registered model."""
        return [ModelView(row) for row in self._call("GET", "models")]

    def model(self, ref: str) -> ModelView:
        """One model: ``name@version``, or ``name`` for its newest version."""
        return ModelView(self._call("GET", "models", ref))

    def import_model(self, name: str, path: Path | str) -> ModelView:
        """Register the Hugging Face directory at ``path`` (on the cluster's storage) as a new version of ``name``."""
        body = {"name": name, "path": str(Path(path).expanduser().absolute())}
        return ModelView(self._call("POST", "models", body=body, repeatable=False))

    def set_alias(self, alias: str, target: str | int) -> ModelView:
        """Have ``name@alias`` mean a version of the model, or what another alias of it means. Services follow it."""
        name, _, which = alias.partition("@")
        return ModelView(self._call("PUT", "models", name, "aliases", which, body={"target": str(target)}))

    def alias(self, alias: str) -> ModelView:
        """The version that ``name@alias`` means, with the ``history`` of all that it ever meant."""
        name, _, which = alias.partition("@")
        return ModelView(self._call("GET", "models", name, "aliases", which))

    def rollback_alias(self, alias: str) -> ModelView:
        """Have ``name@alias`` mean what it did before."""
        name, _, which = alias.partition("@")
        return ModelView(self._call("POST", "models", name, "aliases", which, "rollback", repeatable=False))

    def remove_alias(self, alias: str) -> None:
        """Raises ConflictError while a service follows it."""
        name, _, which = alias.partition("@")
        self._call("DELETE", "models", name, "aliases", which, repeatable=False)

    def export_model(self, ref: str, path: Path | str) -> View:
        """Copy a model's files to the directory ``path`` (on the cluster's storage), which must not exist yet."""
        body = {"path": str(Path(path).expanduser().absolute())}
        return View(self._call("POST", "models", ref, "export", body=body, repeatable=False))

    def remove_model(self, ref: str) -> None:
        """Delete one version of a model. Raises ConflictError while a job or service uses it."""
        self._call("DELETE", "models", ref, repeatable=False)

    # Text from served models

    def complete(self, model: str, prompt: str, **options: Any) -> str:
        """What service ``model`` writes after ``prompt``. ``options`` are OpenAI's: max_tokens, temperature, seed…"""
        answer = self._generate("completions", {"model": model, "prompt": prompt, **options})
        return str(answer["choices"][0]["text"])

    def chat(self, model: str, messages: str | Sequence[dict[str, str]], **options: Any) -> str:
        """The assistant's reply to ``messages`` (a string is one user message). ``options`` are OpenAI's."""
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        answer = self._generate("chat/completions", {"model": model, "messages": turns, **options})
        return str(answer["choices"][0]["message"]["content"])

    def openai(self) -> OpenAI:
        """The ``openai`` package's own client, bound to this cluster: streaming, and everything else it can do."""
        from openai import DefaultHttpxClient, OpenAI

        http = DefaultHttpxClient(trust_env=not self.connection.loopback)
        return OpenAI(base_url=f"{self.connection.url}/v1", api_key=self.connection.key, http_client=http)

    def _generate(self, route: str, body: dict[str, Any]) -> Any:
        if body.get("stream"):
            raise UsageError(
                "this method returns the whole text at once", hint="stream with `.openai()`", param="stream"
            )
        return self._api.call("POST", f"/v1/{route}", body=body, repeatable=False)


def _deadline(timeout_s: float | None) -> float:
    return float("inf") if timeout_s is None else time.monotonic() + timeout_s


def _pause(deadline: float, message: str, hint: str) -> None:
    if time.monotonic() > deadline:
        raise DeadlineError(f"gave up waiting: {message}", hint=hint)
    time.sleep(POLL_S)
