"""What the control API answers, as values that read well: JSON objects with attributes and a one-line ``repr``.

A view *is* the server's JSON object (a ``dict``), so nothing the server says is lost and ``json.dumps`` works; the
annotations below say which fields the code relies on.
"""

from __future__ import annotations

from typing import Any

from llmos.core.types import JobPhase


class View(dict[str, Any]):
    """A JSON object whose fields are also attributes: ``job.phase`` is ``job["phase"]``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no field `{name}`; it has {', '.join(self)}") from None


class JobView(View):
    """A training job. Times are seconds since the epoch, None until they happen; ``metrics`` is the newest row.

    ``gang`` is what it asks for or runs as: {text, bundles, cpus, gpus}. While it waits, ``place`` is that in the queue
    of its tenant, and ``estimated_start`` {p50, p90}, if it can be told.
    """

    id: str
    name: str
    phase: str
    reason: str
    attempt: int
    attempts: int
    created_at: float
    started_at: float | None
    ended_at: float | None
    step: int
    steps: int
    metrics: dict[str, float]
    model: str | None
    spec: dict[str, Any]
    tenant: str
    priority: int
    gang: dict[str, Any]
    place: int | None
    estimated_start: dict[str, float] | None

    @property
    def final(self) -> bool:
        """Whether the job has ended, well or not."""
        return JobPhase(self.phase).final

    @property
    def succeeded(self) -> bool:
        return self.phase == JobPhase.SUCCEEDED

    def __repr__(self) -> str:
        loss = (self.get("metrics") or {}).get("loss")
        parts = [f"job {self.id}", self.phase, f"step {self.step}/{self.steps}"]
        parts += [f"loss {loss:.3f}"] if loss is not None else []
        parts += [f"model {self.model}"] if self.get("model") else []
        return f"<{' · '.join(parts)}>"


class MetricsRow(View):
    """One line of a job's metrics. ``loss`` is in nats per token (None: not a number), times are in
    seconds: ``time_s`` since the epoch, ``data_wait_s`` is the longest that a rank waited for what it reads.
    docs/training.md lists what else a row has.
    """

    step: int
    loss: float | None
    learning_rate: float
    grad_norm: float
    tokens_per_s: float
    tokens: int
    data_wait_s: float
    time_s: float

    @property
    def shown(self) -> list[str]:
        """Its loss and speed in words; of a user's own loop, which may have neither, its first two numbers."""
        parts = [f"loss {'not a number' if self.loss is None else f'{self.loss:.3f}'}"] if "loss" in self else []
        parts += [f"{self.tokens_per_s:,.0f} tokens/s"] if "tokens_per_s" in self else []
        others = [name for name, value in self.items() if value is not None and name not in ("step", "time_s")]
        return parts or [f"{name} {self[name]:.5g}" for name in others[:2]]

    def __repr__(self) -> str:
        return f"<{' · '.join([f'step {self.step}', *self.shown])}>"


class EventView(View):
    """Something that happened to ``subject`` at ``at`` (seconds since the epoch), and why."""

    at: float
    subject: str
    what: str
    why: str

    def __repr__(self) -> str:
        return f"<{self.subject}: {self.what}{f' – {self.why}' if self.why else ''}>"


class ServiceView(View):
    """A served model: ``replicas`` wanted, ``ready`` of them answering with its present ``revision``.

    ``revisions`` are all that are known, each with its ``weight``, the share of the requests. ``wake_s`` is what the
    last start from zero took.
    """

    name: str
    model: str
    phase: str
    replicas: int
    ready: int
    message: str

    @property
    def is_ready(self) -> bool:
        """Whether every replica answers, or it is at zero until a request comes."""
        return self.phase in ("ready", "idle")

    def __repr__(self) -> str:
        return f"<service {self.name} · {self.model} · {self.ready}/{self.replicas} ready>"


class ModelView(View):
    """One version of a registered model; ``ref`` is ``name@version``."""

    ref: str
    name: str
    version: int
    digest: str
    created_at: float

    def __repr__(self) -> str:
        return f"<model {self.ref} · {self.digest[:12]}>"


class KeyView(View):
    """An API key. ``secret`` is there only in the answer that creates it, and ``repr`` never shows it."""

    id: str
    name: str
    scopes: list[str]
    tenant: str
    limits: dict[str, int]

    def __repr__(self) -> str:
        return f"<key {self.id} · {self.name} · {','.join(self.scopes)}>"


class UsageView(View):
    """What requests have used since the day ``since``: ``rows`` and their ``total``.

    Each has requests, failed, abandoned, prompt_tokens, cached_tokens and completion_tokens.
    """

    since: str
    by: list[str]
    rows: list[dict[str, Any]]
    total: dict[str, int]

    def __repr__(self) -> str:
        tokens = self.total["prompt_tokens"] + self.total["completion_tokens"]
        return f"<usage since {self.since} · {self.total['requests']} requests · {tokens} tokens>"


class TenantView(View):
    """A tenant: its limits (None: unlimited), how many of its own jobs run and wait, and what these hold.

    ``budget`` and ``used_gpu_hours`` are in GPU-hours; ``held`` has cpus, gpus, memory_bytes and custom.
    """

    name: str
    parent: str | None
    share: float
    borrow_limit: float | None
    quota: dict[str, Any] | None
    budget: float | None
    running: int
    waiting: int
    held: dict[str, Any]
    used_gpu_hours: float

    def __repr__(self) -> str:
        return f"<tenant {self.name} · share {self.share:g} · {self.running} running, {self.waiting} waiting>"
