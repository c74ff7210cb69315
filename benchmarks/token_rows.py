"""``tokens_10m`` and ``tokens_135m``: how fast one worker trains, against those who do nothing else.

See :mod:`benchmarks.contenders` for what is trained. Contenders take turns, one process after the other; the ratio is
the median over the rounds of ours to that of the peer which is fastest by its median.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.contenders import CONTENDERS, Arena, Case
from benchmarks.peers import TRAINERS, Missing
from benchmarks.rows import Measured, Options, Unmeasured
from llmos.models import ModelConfig
from llmos.spec import PRESETS

OURS = "llmos"

CASE_10M = Case(
    "tokens-10m",
    ModelConfig(
        *(8192, 320, 864),
        num_layers=6,
        num_heads=5,
        num_kv_heads=5,
        head_dim=64,
        max_position=1024,
    ),
    gpt={"n_layer": 6, "n_head": 5, "n_embd": 320},  # 10.07 M parameters beside 10.06 M
    steps=4,
)
CASE_135M = Case(
    "tokens-135m",
    ModelConfig(vocab_size=49152, **asdict(PRESETS["small"])),  # SmolLM-135M
    gpt={"n_layer": 27, "n_head": 9, "n_embd": 576},  # 135.9 M parameters beside 134.5 M
    accumulate=1,
    steps=1,
)


def tokens_10m(options: Options) -> Measured:
    """Steps of 2,048 tokens of a model of 10 M parameters."""
    return _compare(replace(CASE_10M, steps=2) if options.quick else CASE_10M, rounds=1 if options.quick else 3)


def tokens_135m(options: Options) -> Measured:
    """Steps of 1,024 tokens of SmolLM-135M's shape; ``quick``: of 256."""
    quick = replace(CASE_135M, micro_batch=1)
    return _compare(quick if options.quick else CASE_135M, rounds=1 if options.quick else 3)


def _compare(case: Case, rounds: int) -> Measured:
    """Raises Unmeasured when a peer is not installed."""
    try:
        for peer in TRAINERS:
            _ = peer.python
    except Missing as missing:
        raise Unmeasured(str(missing)) from missing
    speeds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory(prefix="llmos-tokens-") as directory:
        arena = Arena(case, Path(directory))
        for _ in range(rounds):
            for name, steps in CONTENDERS.items():
                speeds[name].append(case.step_tokens / statistics.median(steps(arena)))
                print(f"{case.name}: {name} {speeds[name][-1]:,.0f} tokens/s", file=sys.stderr, flush=True)
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    best = max((name for name in medians if name != OURS), key=medians.__getitem__)
    ratio = statistics.median(ours / theirs for ours, theirs in zip(speeds[OURS], speeds[best], strict=True))
    others = ", ".join(f"{name} {speed:,.0f}" for name, speed in medians.items() if name != OURS)
    shape = f"fp32, {case.threads} thread, steps of {case.accumulate} × {case.micro_batch} × {case.length} tokens"
    why = f"{others}; {shape}; {case.steps} steps each in {rounds} rounds by turns"
    return Measured(medians[OURS], medians[best], ratio, why, peer=best)
