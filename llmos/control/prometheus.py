"""What running jobs have measured last, in Prometheus' format. docs/operations.md lists the names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest

_GAUGES: Mapping[str, tuple[str, str]] = {
    "step": ("step", "steps done"),
    "loss": ("loss", "loss of the newest step, nats per token"),
    "learning_rate": ("learning_rate", "learning rate of the newest step"),
    "grad_norm": ("grad_norm", "norm of the gradient before it is clipped"),
    "tokens": ("tokens", "tokens trained on"),
    "tokens_per_s": ("tokens_per_second", "tokens per second over all ranks"),
    "mfu": ("mfu", "model FLOPs utilization, 0 to 1"),
    "memory_bytes": ("memory_bytes", "memory that the fullest rank holds"),
    "memory_peak_bytes": ("memory_peak_bytes", "the most memory that a rank has held"),
    "data_wait_s": ("data_wait_seconds", "longest wait of a rank for samples in a step"),
    "bubble": ("bubble_ratio", "share of the pipeline's time in which ranks wait, 0 to 1"),
}
"""Metric → name behind ``llmos_train_``, and what it is."""
_BY_KIND: Mapping[str, tuple[str, str]] = {
    r"wait_(\w+)_s": ("comm_wait_seconds", "exposed communication of a rank in a step, by kind"),
    r"sent_(\w+)_bytes": ("sent_bytes", "bytes that a rank sends in a step, by kind"),
}


def exposition(jobs: Iterable[Mapping[str, Any]]) -> bytes:
    """The gauges of ``jobs``, each ``{id, metrics}``, with the label ``job``."""
    registry = CollectorRegistry()
    plain = {
        metric: Gauge(f"llmos_train_{name}", text, ["job"], registry=registry)
        for metric, (name, text) in _GAUGES.items()
    }
    by_kind = {
        pattern: Gauge(f"llmos_train_{name}", text, ["job", "kind"], registry=registry)
        for pattern, (name, text) in _BY_KIND.items()
    }
    for job in jobs:
        for metric, value in job["metrics"].items():
            if value is None:  # a number that JSON does not have
                continue
            if metric in plain:
                plain[metric].labels(job["id"]).set(value)
            for pattern, gauge in by_kind.items():
                if match := re.fullmatch(pattern, metric):
                    gauge.labels(job["id"], match[1]).set(value)
    return generate_latest(registry)
