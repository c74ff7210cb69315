"""The rows of :mod:`benchmarks.frontdoor` with the mock engine: what the front door adds, and how much passes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.frontdoor.contenders import BARE, ECHO, OURS, PROXY, SERVE, SERVE_TUNED
from benchmarks.frontdoor.measure import (
    CHUNKS_16,
    CHUNKS_64,
    SHORT,
    TTFT_1,
    TTFT_8,
    Figure,
    Group,
    Workload,
    alone,
    answer_rate,
    beside_serve,
    event_rate,
    ttft_ms,
)
from benchmarks.rows import Measured, Options, Unmeasured

_PEERS: dict[str, Callable[[Options], Group]] = {
    PROXY: alone,
    SERVE: lambda options: beside_serve(options, tuned=False),
    SERVE_TUNED: lambda options: beside_serve(options, tuned=True),
}
"""Whom we are compared with, and in which group they are."""


class _Findings:
    """Figures by name, and why some are missing: a peer that fails takes none of ours with it."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self._missing: list[str] = []

    def add(self, name: str, figure: Callable[..., float], *arguments: Any) -> None:
        """``figure(*arguments)`` as ``name``, unless it cannot be measured."""
        try:
            self.figures[name] = figure(*arguments)
        except Unmeasured as error:
            self._missing.append(str(error))

    @property
    def why(self) -> str:
        """What the figures are, and what is missing."""
        return "; ".join(["medians over rounds by turns, all on loopback", *dict.fromkeys(self._missing)])


def ttft_p50_ms(options: Options) -> Measured:
    """What a request waits longer for its first token than at the bare engine: the median."""
    return _ttft(options, 50)


def ttft_p99_ms(options: Options) -> Measured:
    """The same for one request in a hundred."""
    return _ttft(options, 99)


def chunks_per_s(options: Options) -> Measured:
    """Tokens that 16 streams pass on, against Ray Serve's tuned path to the same engine; the same with 64 streams."""
    found, tuned = _Findings(), beside_serve(options, tuned=True)
    for workload, suffix in ((CHUNKS_16, ""), (CHUNKS_64, "_c64")):
        _all(found, options, workload, event_rate, suffix)
        found.add(f"ratio{suffix}", tuned.ratio, OURS, SERVE_TUNED, workload, event_rate)
    also = found.figures
    value, peer, ratio = also.pop("ours"), also.get("serve_tuned"), also.pop("ratio", None)
    return Measured(value, peer, ratio, found.why, also={"c64": also.pop("ours_c64"), **also})


def short_rps(options: Options) -> Measured:
    """Requests for one token, key and schema checks on, against LiteLLM and against a bare echo past the checks."""
    found, group = _Findings(), alone(options)
    _all(found, options, SHORT, answer_rate)
    found.add("echo", group.median, ECHO, SHORT, answer_rate)
    found.add("of_echo", group.ratio, OURS, ECHO, SHORT, answer_rate)
    found.add("ratio", group.ratio, OURS, PROXY, SHORT, answer_rate)
    also = found.figures
    return Measured(also.pop("ours"), also.get("litellm"), also.pop("ratio", None), found.why, also=also)


def _ttft(options: Options, percent: int) -> Measured:
    found, figure, group = _Findings(), ttft_ms(percent), alone(options)
    for workload, suffix in ((TTFT_1, ""), (TTFT_8, "_c8")):
        found.add(f"bare{suffix}", group.median, BARE, workload, figure)
        for name, its in _PEERS.items():
            found.add(f"{_key(name)}{suffix}", its(options).added, name, workload, figure)
    also = {"c8": group.added(OURS, TTFT_8, figure), **found.figures}
    return Measured(group.added(OURS, TTFT_1, figure), also.get("serve_tuned"), why=found.why, also=also)


def _all(found: _Findings, options: Options, workload: Workload, figure: Figure, suffix: str = "") -> None:
    """The medians of everybody, ours first, which there must be."""
    found.figures[f"ours{suffix}"] = alone(options).median(OURS, workload, figure)
    found.add(f"bare{suffix}", alone(options).median, BARE, workload, figure)
    for name, group in _PEERS.items():
        found.add(f"{_key(name)}{suffix}", group(options).median, name, workload, figure)


def _key(name: str) -> str:
    """As a figure is called: ``Ray Serve tuned`` is serve_tuned."""
    return name.lower().removeprefix("ray ").replace(" ", "_")
