"""``scale_dp``, ``scale_tp``, ``scale_pp``: two workers on one job, against two that know nothing of each other.

Two ranks of one thread hold a model of 135 M parameters twice: spread over both, and whole. In turns they take a step
of 2,048 tokens together, and each a step of 2,048 tokens of its own at the same time. The ceiling is the tokens/s of
both copies together, which already share the machine's memory and caches. Steps are whole ones, of
:class:`llmos.train.training.Training`: reading, passes, sums, clipping, AdamW.
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from benchmarks.ranks import on_ranks
from benchmarks.rows import Measured, Options
from llmos.files import write_json
from llmos.layout import AttemptDirs
from llmos.models import ModelConfig, Transformer
from llmos.parallel.world import World
from llmos.spec import TrainJob, parse
from llmos.train.data import Corpus
from llmos.train.start import prepare_corpus, set_process
from llmos.train.training import Training

PAIRS, QUICK_PAIRS = 5, 1
TOKENS, QUICK_TOKENS = 2048, 1024
LENGTH = 256
log = logging.getLogger("benchmarks")
SHAPE = ModelConfig(44800, 768, 2048, num_layers=16, num_heads=12, num_kv_heads=4, head_dim=64, max_position=1024)
"""135.1 M parameters. SmolLM-135M has 9 heads, which two tp ranks cannot share."""


def scale_dp(options: Options) -> Measured:
    """Each rank has the model and half of the batch."""
    return _scale({"dp": 2}, {}, options)


def scale_tp(options: Options) -> Measured:
    """Each rank has a half of every layer."""
    return _scale({"tp": 2}, {}, options)


def scale_pp(options: Options) -> Measured:
    """Each rank has a half of the layers."""
    return _scale({"pp": 2}, {"schedule": "1f1b"}, options)


def _scale(mesh: dict[str, int], pipeline: dict[str, Any], options: Options) -> Measured:
    pairs, tokens = (QUICK_PAIRS, QUICK_TOKENS) if options.quick else (PAIRS, TOKENS)
    with tempfile.TemporaryDirectory(prefix="llmos-scale-") as directory:
        library = sorted(Path(os.__file__).parent.glob("a*.py"))
        _text(Path(directory)).write_text("".join(path.read_text() for path in library))
        write_json(Path(directory) / "config.json", SHAPE.to_hf())
        found = on_ranks(2, _speeds, directory, mesh, pipeline, tokens, pairs)
    together = [min(pair) for pair in zip(*(speeds for speeds, _ in found), strict=True)]
    ceilings = [sum(pair) for pair in zip(*(speeds for _, speeds in found), strict=True)]
    ratio = statistics.median(ours / ceiling for ours, ceiling in zip(together, ceilings, strict=True))
    why = f"135 M, fp32, {tokens:,} tokens a step, median of {pairs} pairs by turns; each " + ", ".join(
        f"{ours / ceiling:.3f}" for ours, ceiling in zip(together, ceilings, strict=True)
    )
    return Measured(statistics.median(together), statistics.median(ceilings), ratio, why)


def _speeds(
    directory: str, mesh: dict[str, int], pipeline: dict[str, Any], tokens: int, pairs: int
) -> tuple[list[float], list[float]]:
    """Tokens/s of this rank's steps: those taken with the other, and those of its own copy."""
    root, world = Path(directory), World.current()
    job, alone = _job(root, tokens, mesh, pipeline), _job(root, tokens, {"dp": 1}, {})
    os.environ["OMP_NUM_THREADS"] = "1"
    set_process(job)
    corpus = prepare_corpus(job, root / "data", None, world, log.debug)
    shared = _training(job, corpus, root / "shared", world)
    copy = _training(alone, corpus, root / f"copy{world.rank}", World())
    found: tuple[list[float], list[float]] = [], []
    for _ in range(pairs + 1):
        for training, speeds in zip((shared, copy), found, strict=True):
            dist.barrier()
            began = time.perf_counter()
            training.advance()
            speeds.append(tokens / (time.perf_counter() - began))
    return found[0][1:], found[1][1:]  # the first steps allocate


def _training(job: TrainJob, corpus: Corpus, checkpoints: Path, world: World) -> Training:
    attempt = AttemptDirs(checkpoints / "attempt")
    attempt.root.mkdir(parents=True, exist_ok=True)
    return Training(job, Transformer(SHAPE), corpus, checkpoints, world, attempt)


def _text(root: Path) -> Path:
    return root / "text.txt"


def _job(root: Path, tokens: int, mesh: dict[str, int], pipeline: dict[str, Any]) -> TrainJob:
    spec = parse(
        {
            "kind": "TrainJob",
            "name": "scale",
            "model": {"config": str(root)},
            "data": {"path": str(_text(root)), "vocab_size": 512},
            "mesh": mesh,
            "pipeline": pipeline,
            "steps": 100,
            "batch_size": tokens // LENGTH,
            "sequence_length": LENGTH,
            "precision": "fp32",
            "output": {"model": "scale"},
        }
    )
    assert isinstance(spec, TrainJob)
    return spec
