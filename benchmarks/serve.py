"""Serving: every number we claim, beside its peer.

    python -m benchmarks.serve [--quick] [--json] [--data DIR] [--only ROW …] [--merge FILE]
    DEVICE=cuda python -m benchmarks.serve --only gpu_roofline_b1 gpu_decode_c256

vLLM is installed beforehand, by ``make bench-peers``. Models are written under ``.bench/models`` when they are needed.
"""

from __future__ import annotations

import sys

from benchmarks.rows import Row, Target, main

_TWICE = Target("ratio", least=2.0, note="goal 3")
_THRICE = Target("ratio_to_transformers", least=3.0)
_AS_SOON = Target("ttft_ratio", most=1.0)
_READ = "memory reads in the same run"
_ONE_PROCESS = "one process, two threads"


def _row(name: str, module: str, unit: str, peer: str, *targets: Target) -> Row:
    return Row(name, f"benchmarks.{module}:{name}", unit, peer, targets)


ROWS = (
    _row("decode_b1", "serve_rows", "tokens/s", "vLLM", _TWICE, _THRICE, _AS_SOON),
    _row("decode_c8", "serve_rows", "tokens/s", "vLLM", _TWICE, _THRICE, _AS_SOON),
    _row("decode_c32", "serve_rows", "tokens/s", "vLLM", _TWICE, _THRICE, _AS_SOON),
    _row("decode_c64", "serve_rows", "tokens/s", "vLLM", _TWICE, _THRICE, _AS_SOON),
    _row("roofline_b1", "serve_native_rows", "GB/s", _READ, Target("ratio", least=0.75, note="goal 0.9")),
    _row("fallback_b1", "serve_rows", "tokens/s", "transformers", Target("ratio", least=1.5)),
    _row("fallback_c32", "serve_rows", "tokens/s", "transformers", Target("ratio", least=2.0)),
    _row("prefill_2048", "serve_rows", "tokens/s", "better of the two", Target("ratio", least=1.0, note="goal 1.5")),
    _row("int8_b1", "serve_native_rows", "tokens/s", "our bf16", Target("ratio", least=1.5)),
    _row("int4_b1", "serve_native_rows", "tokens/s", "our bf16", Target("ratio", least=1.8)),
    _row("tp2", "serve_engine_rows", "tokens/s", _ONE_PROCESS, Target("ratio", least=0.85)),
    _row("pp2", "serve_engine_rows", "tokens/s", _ONE_PROCESS, Target("ratio", least=0.85)),
    _row("shared_prefix_ttft", "serve_engine_rows", "ms", "without the cache", Target("ratio", least=3.0)),
    _row("block_replay", "serve_blocks", "share of blocks hit", "plain LRU", Target("value", least=0.52)),
    _row("cold_start", "serve_rows", "s", "vLLM", Target("ratio", least=5.0)),
    _row("spec_decode", "serve_engine_rows", "tokens/s", "without", Target("ratio", least=1.3)),
    _row("gpu_roofline_b1", "serve_gpu_rows", "GB/s", "the card's reads", Target("ratio", least=0.85)),
    _row("gpu_decode_c256", "serve_gpu_rows", "tokens/s", "transformers", Target("ratio", least=4.0)),
)

if __name__ == "__main__":
    sys.exit(main("serve", ROWS))
