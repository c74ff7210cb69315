"""What the front door has seen, in Prometheus' format: by model and tenant, with labels whose number is bounded.

A label is only ever the name of a service or a tenant: requests for models that are not served are counted among all
that the front door answers, without a name. The first MAX_MODELS models and MAX_TENANTS tenants have labels of their
own; all others share ``other``, so that metrics stay small however many come and go. docs/limits.md lists the names.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from llmos.usage import Tokens

MAX_MODELS, MAX_TENANTS = 100, 20
OTHER = "other"
_LABELS = ("model", "tenant")
_STATUS, _REACHED = "requests by the status of their answer", "requests refused because a limit was reached"
_TOKENS = {
    "prompt": ("llmos_prompt_tokens", "tokens of prompts"),
    "cached": ("llmos_cached_tokens", "those that a replica had computed before"),
    "completion": ("llmos_completion_tokens", "tokens of answers"),
}
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


class _Tally:
    """What was counted with the same labels. One event loop counts and tells, so that to add is all it takes: the
    library's counters are made for threads, and take longer than the routing of a request."""

    __slots__ = ("cached", "completion", "prompt", "refused", "requests", "running")

    def __init__(self) -> None:
        self.running = self.prompt = self.cached = self.completion = 0
        self.requests, self.refused = dict[int, int](), dict[str, int]()  # by status, by limit


class _Times:
    """Times by their labels, in ``buckets`` (seconds)."""

    def __init__(self, buckets: Sequence[float]) -> None:
        self._buckets = buckets
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def add(self, labels: tuple[str, ...], seconds: float) -> None:
        counts = self._counts.get(labels) or self._counts.setdefault(labels, [0] * (len(self._buckets) + 1))
        counts[bisect_left(self._buckets, seconds)] += 1
        self._sums[labels] = self._sums.get(labels, 0.0) + seconds

    def tell(self, name: str, text: str) -> HistogramMetricFamily:
        """As Prometheus has it."""
        family = HistogramMetricFamily(name, text, labels=_LABELS)
        limits = [*map(floatToGoString, self._buckets), "+Inf"]
        for labels, counts in self._counts.items():
            family.add_metric(labels, list(zip(limits, accumulate(counts), strict=True)), self._sums[labels])
        return family


class FrontMetrics(Collector):
    """Metrics of one front door, of one event loop. ``replicas`` gives the heartbeats that it knows."""

    def __init__(self, replicas: Callable[[], Iterable[Any]] = tuple) -> None:
        self.registry = CollectorRegistry()
        self._models, self._tenants = Names(MAX_MODELS), Names(MAX_TENANTS)
        self._tallies: dict[tuple[str, str], _Tally] = {}
        self._first_token, self._token = _Times(_FIRST_TOKEN_S), _Times(_TOKEN_S)
        self.registry.register(self)
        self.registry.register(_Replicas(replicas))

    def began(self, model: str, tenant: str) -> None:
        """A request for a served ``model`` was let in."""
        self._tally(model, tenant).running += 1

    def ended(self, model: str, tenant: str, status: int, tokens: Tokens | None) -> None:
        """It is over; ``tokens`` is what it used, if that is known."""
        tally = self._tally(model, tenant)
        tally.running -= 1
        tally.requests[status] = tally.requests.get(status, 0) + 1
        if tokens is not None:
            tally.prompt += tokens.prompt
            tally.cached += tokens.cached
            tally.completion += tokens.completion

    def streamed(self, model: str, tenant: str, first_s: float, rest_s: float, tokens: int) -> None:
        """A stream of ``tokens`` had its first byte after ``first_s`` seconds and its last ``rest_s`` later."""
        labels = self._labels(model, tenant)
        self._first_token.add(labels, first_s)
        if tokens > 1:
            self._token.add(labels, rest_s / (tokens - 1))

    def refused(self, model: str, tenant: str, status: int, limit: str = "") -> None:
        """A request for a served ``model`` was not let in: ``limit`` is what was reached, if anything was."""
        tally = self._tally(model, tenant)
        tally.requests[status] = tally.requests.get(status, 0) + 1
        if limit:
            tally.refused[limit] = tally.refused.get(limit, 0) + 1

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        requests = CounterMetricFamily("llmos_model_requests", _STATUS, labels=(*_LABELS, "status"))
        refused = CounterMetricFamily("llmos_model_refused", _REACHED, labels=(*_LABELS, "limit"))
        running = GaugeMetricFamily("llmos_model_running", "requests that are being answered", labels=_LABELS)
        tokens = {field: CounterMetricFamily(*told, labels=_LABELS) for field, told in _TOKENS.items()}
        for labels, tally in self._tallies.items():
            running.add_metric(labels, tally.running)
            for status, count in tally.requests.items():
                requests.add_metric((*labels, str(status)), count)
            for limit, count in tally.refused.items():
                refused.add_metric((*labels, limit), count)
            for field, family in tokens.items():
                family.add_metric(labels, getattr(tally, field))
        yield from (requests, refused, running, *tokens.values())
        yield self._first_token.tell("llmos_time_to_first_token_seconds", "until the first byte of a stream")
        yield self._token.tell("llmos_time_per_output_token_seconds", "of a stream, after its first token")

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        return generate_latest(self.registry)

    def _tally(self, model: str, tenant: str) -> _Tally:
        labels = self._models.label(model), self._tenants.label(tenant)
        return self._tallies.get(labels) or self._tallies.setdefault(labels, _Tally())

    def _labels(self, model: str, tenant: str) -> tuple[str, str]:
        return self._models.label(model), self._tenants.label(tenant)


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
