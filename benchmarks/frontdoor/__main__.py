"""The front door: every number we claim, beside its peers.

    python -m benchmarks.frontdoor [--quick] [--json] [--data DIR] [--only ROW …] [--merge FILE]

LiteLLM is installed beforehand, by ``make bench-peers``. Everything listens on loopback and has a process of its own;
the engine computes nothing unless a row says so, for what it would do is the same behind every front door.
"""

from __future__ import annotations

import sys

from benchmarks.rows import Row, Target, main

_TUNED = "Ray Serve with HAProxy and its throughput settings"


def _row(name: str, module: str, unit: str, peer: str, *targets: Target) -> Row:
    return Row(name, f"benchmarks.frontdoor.{module}:{name}", unit, peer, targets)


_SOON = Target("value", most=1.5), Target("c8", most=5.0)
_MANY = Target("value", least=10_000), Target("c64", least=10_000)
_AS_MANY = Target("ratio", least=0.7), Target("ratio_c64", least=0.7)

ROWS = (
    _row("ttft_p50_ms", "rows", "ms added", _TUNED, *_SOON),
    _row("ttft_p99_ms", "rows", "ms added", _TUNED, *_SOON),
    _row("tpot_ms", "tpot_row", "ms added", "the engine's own port", Target("value", most=0.2)),
    _row("chunks_per_s", "rows", "chunks/s", _TUNED, *_MANY, *_AS_MANY),
    _row(
        "short_rps",
        "rows",
        "requests/s",
        "LiteLLM",
        Target("of_echo", least=0.7, note="goal 1,000/s"),
        Target("ratio", least=5.0),
    ),
    _row(
        "route_hit",
        "route",
        "share of blocks hit",
        "one cache of 16,000 blocks",
        Target("ratio", least=0.95),
        Target("of_round_robin", least=2.5),
    ),
    _row("route_imbalance", "route", "most / mean tokens", "round robin", Target("value", most=1.1)),
    _row("wake_s", "wake_row", "s", "none", Target("value", most=10.0, note="goal 5")),
    _row("embed_per_s", "embed", "texts/s", "sentence-transformers", Target("ratio", least=1.0)),
)

if __name__ == "__main__":
    sys.exit(main("frontdoor", ROWS))
