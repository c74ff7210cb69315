"""What the front door has seen, in Prometheus' format: by model and tenant, with labels whose number is bounded.

A label is only ever the name of a service or a tenant: requests for models that are not served are counted among all
that the front door answers, without a name. The first MAX_MODELS models and MAX_TENANTS tenants have labels of their
own; all others share ``other``, so that metrics stay small however many come and go. docs/limits.md lists the names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from llmos.usage import Tokens

MAX_MODELS, MAX_TENANTS = 100, 20
OTHER = "other"
_LABELS = ("model", "tenant")
_FIRST_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_REPLICA = {
    "running": ("llmos_replica_running", "requests that a replica answers"),
    "waiting": ("llmos_replica_waiting", "requests that wait at a replica"),
    "blocks": ("llmos_replica_blocks", "blocks of a replica's key-value cache"),
    "blocks_free": ("llmos_replica_blocks_free", "those that can be had now"),
    "tokens": ("llmos_replica_tokens", "tokens that a replica has generated since it started"),
    "draining": ("llmos_replica_draining", "1 if it takes nothing new"),
    "cache_hits": ("llmos_replica_cache_hit_ratio", "share of its prompts' tokens that it had computed before"),
}
"""Field of a replica's heartbeat → metric, and what it is. A replica without the field has no such metric."""


class Names:
    """At most ``most`` different labels for names as they come, then OTHER."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        """``name`` itself, or OTHER."""
        if name not in self._known:
            if len(self._known) >= self._most:
                return OTHER
            self._known.add(name)
        return name


class FrontMetrics:
    """Metrics of one front door. ``replicas`` gives the heartbeats that it knows."""

    def __init__(self, replicas: Callable[[], Iterable[Any]] = tuple) -> None:
        self.registry = CollectorRegistry()
        self._models, self._tenants = Names(MAX_MODELS), Names(MAX_TENANTS)
        self._requests = self._counter("llmos_model_requests", "requests by the status of their answer", "status")
        self._refused = self._counter("llmos_model_refused", "requests refused because a limit was reached", "limit")
        self._prompt = self._counter("llmos_prompt_tokens", "tokens of prompts")
        self._cached = self._counter("llmos_cached_tokens", "those that a replica had computed before")
        self._completion = self._counter("llmos_completion_tokens", "tokens of answers")
        self._running = Gauge(
            "llmos_model_running", "requests that are being answered", _LABELS, registry=self.registry
        )
        self._first_token = self._histogram(
            "llmos_time_to_first_token_seconds", "until the first byte of a stream", _FIRST_TOKEN_S
        )
        self._token = self._histogram(
            "llmos_time_per_output_token_seconds", "of a stream, after its first token", _TOKEN_S
        )
        self.registry.register(_Replicas(replicas))

    def began(self, model: str, tenant: str) -> None:
        """A request for a served ``model`` was let in."""
        self._running.labels(*self._labels(model, tenant)).inc()

    def ended(self, model: str, tenant: str, status: int, tokens: Tokens | None) -> None:
        """It is over; ``tokens`` is what it used, if that is known."""
        labels = self._labels(model, tenant)
        self._running.labels(*labels).dec()
        self._requests.labels(*labels, str(status)).inc()
        if tokens is not None:
            self._prompt.labels(*labels).inc(tokens.prompt)
            self._cached.labels(*labels).inc(tokens.cached)
            self._completion.labels(*labels).inc(tokens.completion)

    def streamed(self, model: str, tenant: str, first_s: float, rest_s: float, tokens: int) -> None:
        """A stream of ``tokens`` had its first byte after ``first_s`` seconds and its last ``rest_s`` later."""
        labels = self._labels(model, tenant)
        self._first_token.labels(*labels).observe(first_s)
        if tokens > 1:
            self._token.labels(*labels).observe(rest_s / (tokens - 1))

    def refused(self, model: str, tenant: str, status: int, limit: str = "") -> None:
        """A request for a served ``model`` was not let in: ``limit`` is what was reached, if anything was."""
        labels = self._labels(model, tenant)
        self._requests.labels(*labels, str(status)).inc()
        if limit:
            self._refused.labels(*labels, limit).inc()

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        return generate_latest(self.registry)

    def _labels(self, model: str, tenant: str) -> tuple[str, str]:
        return self._models.label(model), self._tenants.label(tenant)

    def _counter(self, name: str, text: str, *more: str) -> Counter:
        return Counter(name, text, (*_LABELS, *more), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, _LABELS, buckets=buckets, registry=self.registry)


class _Replicas(Collector):
    """What replicas say of themselves, read when Prometheus asks: those that are gone leave nothing behind."""

    def __init__(self, replicas: Callable[[], Iterable[Any]]) -> None:
        self._replicas = replicas

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """A gauge for each field, with a value for each replica."""
        beats = list(self._replicas())
        for field, (name, text) in _REPLICA.items():
            family = GaugeMetricFamily(name, text, labels=("model", "replica"))
            for beat in beats:
                value = getattr(beat, field, None)
                if value is not None:
                    family.add_metric((beat.service, beat.replica), float(value))
            yield family
