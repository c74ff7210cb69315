"""The row of embeddings: our engine for encoders beside sentence-transformers, on the same texts and threads."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np

from benchmarks.frontdoor.minilm import directory
from benchmarks.peers import ROOT, SENTENCES, Missing
from benchmarks.rows import Measured, Options, Unmeasured
from benchmarks.serve_contenders import end_with_parent

_DRIVER = ROOT / "benchmarks" / "drivers" / "sentence_transformers_encode.py"
_BATCHES = (8, 32, 128)
"""Texts per batch that the peer is tried with; 32 is its own choice."""
_DEFAULT_BATCH, _TOKENS = 32, 512
_SAME = 1e-4


class Encoder:
    """A process that answers lines of texts with lines of seconds."""

    def __init__(self, command: Sequence[str | Path], threads: int) -> None:
        environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | {"OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=end_with_parent,
        )
        self._line()

    def rate(self, texts: Sequence[str], batch_size: int = _DEFAULT_BATCH) -> float:
        """Texts per second."""
        return len(texts) / float(self._ask(texts, batch_size)["wall_s"])

    def vector(self, text: str) -> Any:
        """Of one text."""
        return np.array(self._ask([text], 1)["vector"])

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _ask(self, texts: Sequence[str], batch_size: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"texts": texts, "batch_size": batch_size}) + "\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"an encoder ended with exit code {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found


def embed_per_s(options: Options) -> Measured:
    """all-MiniLM-L6-v2 in fp32 on all cores, text in and vectors out, both in this machine's processes by turns.

    The peer's batches are of the best of three sizes; ``ratio_default`` is against its own choice, ``one_by_one`` with
    one text at a time.
    """
    if options.device != "cpu":
        raise Unmeasured("skipped: a row of the CPU; run without DEVICE")
    threads, count, turns = len(os.sched_getaffinity(0)), 128 if options.quick else 384, 3 if options.quick else 7
    with ExitStack() as stack:
        ours, theirs = _started(threads, stack)
        distance = _distance(ours, theirs, paragraphs(8, seed=0))
        if distance > _SAME:
            raise RuntimeError(f"the vectors differ: cosine distance {distance:.2g}")
        tried = {size: theirs.rate(paragraphs(count, seed=1), size) for size in _BATCHES}
        ours.rate(paragraphs(count, seed=1))
        best = max(tried, key=tried.__getitem__)
        rounds = [_round(ours, theirs, paragraphs(count, seed=2 + turn), best) for turn in range(turns)]
    mine, peer, default, mine_alone, peer_alone = (statistics.median(found) for found in zip(*rounds, strict=True))
    ratios = [[one[0] / one[1], one[0] / one[2], one[3] / one[4]] for one in rounds]
    ratio, ratio_default, one_by_one = (statistics.median(found) for found in zip(*ratios, strict=True))
    also = {"ratio_default": ratio_default, "one_by_one": one_by_one, "ours_alone": mine_alone}
    also |= {"peer_default": default, "peer_alone": peer_alone, "threads": threads, "distance": distance}
    spread = ", ".join(f"{one[0]:.2f}" for one in ratios)
    why = f"{count} paragraphs a turn; ratios {spread}; the peer's batches are of {best}, the best of {_BATCHES}"
    return Measured(mine, peer, ratio, why, also=also)


def paragraphs(count: int, seed: int) -> list[str]:
    """``count`` paragraphs of Python's own documentation, which every Python has: 1 to some hundred words each."""
    every = [part.strip() for text in topics.values() for part in text.split("\n\n") if part.strip()]
    return random.Random(seed).sample(every, count)


def _started(threads: int, stack: ExitStack) -> tuple[Encoder, Encoder]:
    try:
        model, python = directory(), SENTENCES.python
    except Missing as missing:
        raise Unmeasured(str(missing)) from missing
    own: list[str | Path] = [sys.executable, "-m", "benchmarks.frontdoor.embed_ours", model, str(threads), str(_TOKENS)]
    peer: list[str | Path] = [python, _DRIVER, model, str(threads)]
    found = []
    for command in (own, peer):
        found.append(Encoder(command, threads))
        stack.callback(found[-1].close)
    return found[0], found[1]


def _round(ours: Encoder, theirs: Encoder, texts: list[str], best: int) -> tuple[float, ...]:
    """Texts per second: ours, the peer's at its best and by default; ours and the peer's for one text at a time."""
    few = texts[:16]
    many = ours.rate(texts), theirs.rate(texts, best), theirs.rate(texts, _DEFAULT_BATCH)
    alone = (1 / statistics.mean(1 / encoder.rate([text]) for text in few) for encoder in (ours, theirs))
    return *many, *alone


def _distance(ours: Encoder, theirs: Encoder, texts: list[str]) -> float:
    """The largest cosine distance of what both make of a text."""
    pairs = [(ours.vector(text), theirs.vector(text)) for text in texts]
    return float(max(1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs))
