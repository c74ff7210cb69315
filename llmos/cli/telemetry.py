"""What a job measures of itself, in words: the newest row of its metrics."""

from __future__ import annotations

from collections.abc import Mapping

from llmos.cli.output import size

KINDS = {"gradients": "gradients", "fsdp": "fsdp", "tp": "tp", "pp": "pipeline", "other": "agreement"}


def telemetry(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """``(name, value)`` lines; what has not been measured is left out."""
    return [
        ("speed", _joined(_number(metrics, "tokens_per_s", "{:,.0f} tokens/s"), _mfu(metrics))),
        ("memory", _memory(metrics)),
        ("data wait", _milliseconds(metrics, "data_wait_s")),
        ("comm wait", _joined(_milliseconds(metrics, "comm_wait_s"), _by_kind(metrics))),
        ("bubble", _number(metrics, "bubble", "{:.1%} of the pipeline's time").replace("%", " %")),
    ]


def _by_kind(metrics: Mapping[str, float]) -> str:
    """``tp 90 ms, 1.4 MB; gradients 4 ms, 13 MB``: a rank's waits in a step, and what it sends."""
    found = []
    for kind, name in KINDS.items():
        sent = metrics.get(f"sent_{kind}_bytes")
        parts = [_milliseconds(metrics, f"wait_{kind}_s"), size(sent) if sent else ""]
        if any(parts):
            found.append(f"{name} {', '.join(filter(None, parts))}")
    return "; ".join(found)


def _memory(metrics: Mapping[str, float]) -> str:
    now, peak = metrics.get("memory_bytes"), metrics.get("memory_peak_bytes")
    return f"{size(now)} a rank, at most {size(peak)}" if now and peak else ""


def _milliseconds(metrics: Mapping[str, float], name: str) -> str:
    value = metrics.get(name)
    return "" if value is None else f"{value * 1000:.3g} ms"


def _mfu(metrics: Mapping[str, float]) -> str:
    return _number(metrics, "mfu", "MFU {:.1%}").replace("%", " %")


def _number(metrics: Mapping[str, float], name: str, shown: str) -> str:
    value = metrics.get(name)
    return "" if value is None else shown.format(value)


def _joined(*parts: str) -> str:
    return " · ".join(filter(None, parts))
