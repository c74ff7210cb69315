"""Training: every number we claim, beside its peer.

    python -m benchmarks.train [--quick] [--json] [--data DIR] [--only ROW …] [--merge FILE]
    DEVICE=cuda python -m benchmarks.train --only mfu_1p3b

Peers are installed beforehand, by ``make bench-peers``.
"""

from __future__ import annotations

import sys

from benchmarks.rows import Row, Target, main

_PEERS = "best of nanoGPT, HF Trainer, litgpt"
_CEILING = "two independent copies"
_RAY = "bare Ray Train"

_SPEED = Target("ratio", least=0.98, note="1.00, tolerance 0.02")
_THEORY = Target("ratio", least=0.85, most=1.15)
_AS_FAST = Target("ratio", most=1)


def _row(name: str, module: str, unit: str, peer: str, *targets: Target) -> Row:
    return Row(name, f"benchmarks.{module}:{name}", unit, peer, targets)


ROWS = (
    _row("tokens_10m", "token_rows", "tokens/s", _PEERS, _SPEED),
    _row("tokens_135m", "token_rows", "tokens/s", _PEERS, _SPEED),
    _row("scale_dp", "scale_rows", "tokens/s", _CEILING, Target("ratio", least=0.95)),
    _row("scale_tp", "scale_rows", "tokens/s", _CEILING, Target("ratio", least=0.80)),
    _row("scale_pp", "scale_rows", "tokens/s", _CEILING, Target("ratio", least=0.85)),
    _row("orchestration_pct", "cluster_rows", "% of a step", "torchrun", Target("value", most=3)),
    _row("telemetry_pct", "telemetry_row", "% of a step", "none", Target("value", most=1)),
    _row("submit_to_step_s", "cluster_rows", "s", "TorchTrainer alone", Target("value", most=20)),
    _row("bubble_1f1b", "bubble_rows", "% idle", "theory", _THEORY),
    _row("bubble_interleaved", "bubble_rows", "% idle", "theory", _THEORY),
    _row("bubble_zero", "bubble_rows", "% idle", "theory", _THEORY),
    _row("ckpt_stall_pct", "checkpoint_rows", "% of a minute", "none", Target("value", most=1)),
    _row("ckpt_reshard", "checkpoint_rows", "s", "disk alone", Target("ratio", most=2)),
    _row("kill_to_step", "cluster_rows", "s", _RAY, _AS_FAST),
    _row("resize_to_step", "cluster_rows", "s", _RAY, _AS_FAST),
    _row("node_loss_to_step", "cluster_rows", "s", _RAY, _AS_FAST),
    _row("memory_fsdp4", "memory_rows", "bytes", "one rank", Target("ratio", most=0.29)),
    _row("memory_predicted", "memory_rows", "bytes", "measured", Target("ratio", least=0.9, most=1.1)),
    _row("step_predicted", "step_rows", "s", "measured", Target("ratio", least=0.8, most=1.2)),
    _row("shakespeare", "shakespeare_row", "nats/character", "nanoGPT", Target("value", most=1.88), _AS_FAST),
    _row("mfu_1p3b", "mfu_row", "% MFU", "none", Target("value", least=55)),
)

if __name__ == "__main__":
    sys.exit(main("train", ROWS))
