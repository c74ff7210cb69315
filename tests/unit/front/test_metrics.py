from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from llmos.front.metrics import MAX_MODELS, MAX_TENANTS, FrontMetrics
from llmos.usage import Tokens

LABELS = ("model", "tenant", "replica", "status", "limit", "le")


@dataclass
class Beat:
    service: str
    replica: str
    running: int = 2
    waiting: int = 5
    blocks: int = 100
    blocks_free: int = 60
    tokens: int = 12345
    draining: bool = False
    cache_hits: float | None = 0.75


def samples(metrics: FrontMetrics) -> dict[str, dict[tuple[str, ...], float]]:
    """Name → the values of its labels, in the order of LABELS → what Prometheus would read."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            labels = (sample.labels[name] for name in LABELS if name in sample.labels)
            found.setdefault(sample.name, {})[tuple(labels)] = sample.value
    return found


def test_requests_and_what_they_used() -> None:
    metrics = FrontMetrics()
    for _ in range(3):
        metrics.began("chat", "default")
    metrics.ended("chat", "default", 200, Tokens(10, 4, 21))
    metrics.streamed("chat", "default", 0.02, 0.4, 21)
    metrics.ended("chat", "default", 503, None)
    metrics.refused("chat", "default", 429, "key_tokens")
    metrics.refused("chat", "default", 400)
    seen, whose = samples(metrics), ("chat", "default")
    assert seen["llmos_model_running"] == {whose: 1}
    assert seen["llmos_model_requests_total"] == {
        **{(*whose, "200"): 1, (*whose, "503"): 1, (*whose, "429"): 1, (*whose, "400"): 1}
    }
    assert seen["llmos_model_refused_total"] == {(*whose, "key_tokens"): 1}
    tokens = [seen[f"llmos_{kind}_tokens_total"] for kind in ("prompt", "cached", "completion")]
    assert tokens == [{whose: 10}, {whose: 4}, {whose: 21}]
    assert seen["llmos_time_to_first_token_seconds_sum"] == {whose: 0.02}
    assert seen["llmos_time_per_output_token_seconds_sum"] == {whose: 0.02}
    assert seen["llmos_time_per_output_token_seconds_bucket"][(*whose, "0.01")] == 0
    assert seen["llmos_time_per_output_token_seconds_bucket"][(*whose, "0.025")] == 1


def test_labels_are_bounded() -> None:
    metrics = FrontMetrics()
    for number in range(MAX_MODELS + 50):
        metrics.refused(f"m{number}", f"t{number}", 429, "key_requests")
    metrics.refused("m0", "t0", 429, "key_requests")
    seen = samples(metrics)["llmos_model_requests_total"]
    assert len({model for model, *_ in seen}) == MAX_MODELS + 1
    assert len({tenant for _, tenant, _ in seen}) == MAX_TENANTS + 1
    assert seen[("m0", "t0", "429")] == 2 and seen[("other", "other", "429")] == 50


def test_replicas_say_how_they_do_until_they_are_gone() -> None:
    beats = [Beat("chat", "r1"), Beat("chat", "r2", draining=True, cache_hits=None)]
    metrics = FrontMetrics(lambda: beats)
    seen = samples(metrics)
    assert seen["llmos_replica_waiting"] == {("chat", "r1"): 5, ("chat", "r2"): 5}
    assert seen["llmos_replica_draining"] == {("chat", "r1"): 0, ("chat", "r2"): 1}
    assert seen["llmos_replica_cache_hit_ratio"] == {("chat", "r1"): 0.75}
    assert seen["llmos_replica_blocks_free"][("chat", "r1")] == 60
    beats.pop(0)
    assert list(samples(metrics)["llmos_replica_tokens"]) == [("chat", "r2")]
