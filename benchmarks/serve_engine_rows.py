"""The rows of serving that set our engine against itself: ranks, the prefix cache, guessed tokens."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.coder import coder
from benchmarks.rows import Measured, Options, Unmeasured
from benchmarks.serve_engine import InProcess
from benchmarks.serve_load import prompts
from benchmarks.serve_models import QWEN_500M, SMOLLM_135M, Shape
from llmos.models import Tokenizer

_CONCURRENCY = (1, 16)
_PREFIX, _PROMPT = 512, 640
_LONG_BYTES, _BEGINNING_CHARS = 4000, 1500
_LOOKED_UP = 4
"""Tokens guessed per step."""


def tp2(options: Options) -> Measured:
    """Two tensor-parallel ranks of one thread against one process of two: the worse of one request and 16."""
    return _ranks(options, _CONCURRENCY, tp=2)


def pp2(options: Options) -> Measured:
    """Two pipeline stages of one thread against one process of two, with 16 requests.

    One request is in one stage at a time, so that one thread works: its ratio is printed and asks for nothing.
    """
    return _ranks(options, _CONCURRENCY[1:], pp=2)


def shared_prefix_ttft(options: Options) -> Measured:
    """Prompts of which four fifths are the same: time to first token with the prefix cache and without."""
    count = 4 if options.quick else 16
    model = SMOLLM_135M.written()
    both = [_engine(options, model, prefix_cache=cache, threads=_cores()) for cache in (True, False)]
    try:
        ttft_s: tuple[list[float], list[float]] = ([], [])
        for number, prompt in enumerate(prompts(count + 1, _PROMPT, common=_PREFIX)):
            for engine, found_s in zip(both, ttft_s, strict=True):
                load = engine.run([prompt], 1, new=2)
                if number:  # the first one fills the cache
                    found_s.append(load.ttft_s)
    finally:
        _close(both)
    on, off = map(statistics.median, ttft_s)
    why = f"{count} prompts of {_PROMPT} tokens, {_PREFIX} of them common, one at a time; 135 M"
    return Measured(on * 1000, off * 1000, off / on, why)


def spec_decode(options: Options) -> Measured:
    """The quickstart's model goes on with code, with prompt lookup and without; the answers must be the same."""
    model = coder(quick=options.quick)
    tokenizer = Tokenizer.load(model)
    asked = [tokenizer.encode(text, add_special_tokens=True) for text in _code(2 if options.quick else 8)]
    both = [_engine(options, model, dtype="auto", speculative=n, threads=_cores()) for n in (_LOOKED_UP, 0)]
    try:
        rates: tuple[list[float], list[float]] = ([], [])
        for _ in range(1 if options.quick else 3):
            for engine, found in zip(both, rates, strict=True):
                found.append(engine.run(asked, 1, new=128).rate)
        same = both[0].answers == both[1].answers
        accepted = both[0].engine.stats().get("draft_acceptance")
    finally:
        _close(both)
    if not same:
        raise RuntimeError("the answers differ with guessed tokens: expected the same")
    with_it, without = map(statistics.median, rates)
    ratio = statistics.median(fast / slow for fast, slow in zip(*rates, strict=True))
    also = {} if accepted is None else {"draft_acceptance": float(accepted)}
    why = f"{len(asked)} beginnings of files, 128 tokens each, one at a time, {_LOOKED_UP} guessed; same text"
    return Measured(with_it, without, ratio, why, also=also)


def _ranks(options: Options, judged: Sequence[int], **mesh: int) -> Measured:
    """The worst of the ratios at the ``judged`` concurrencies; the others are printed."""
    if _cores() < 2:
        raise Unmeasured("skipped: needs two cores, one for each rank")
    shape: Shape = SMOLLM_135M if options.quick else QWEN_500M
    model, new = shape.written(), 16 if options.quick else 32
    both = [_engine(options, model, threads=1, **mesh), _engine(options, model, threads=2)]
    try:
        found: dict[int, tuple[list[float], list[float]]] = {n: ([], []) for n in _CONCURRENCY}
        for turn in range(2 if options.quick else 4):
            for concurrency, rates in found.items():
                for engine, its in zip(both, rates, strict=True):
                    load = engine.run(prompts(concurrency, seed=turn), concurrency, new)
                    if turn:  # the first one warms up
                        its.append(load.rate)
    finally:
        _close(both)
    ratios = {n: statistics.median(a / b for a, b in zip(*rates, strict=True)) for n, rates in found.items()}
    worst = min(judged, key=ratios.__getitem__)
    value, peer = map(statistics.median, found[worst])
    also = {f"ratio_c{n}": ratio for n, ratio in ratios.items()}
    return Measured(value, peer, ratios[worst], f"{shape.name}, bf16, concurrency {worst}", also=also)


def _engine(options: Options, model: Path, **chosen: Any) -> InProcess:
    if options.device != "cpu":
        raise Unmeasured("skipped: a row of the CPU; run without DEVICE")
    return InProcess(model, **{"dtype": "bfloat16", **chosen})


def _close(engines: Sequence[InProcess]) -> None:
    for engine in engines:
        engine.close()


def _code(count: int) -> list[str]:
    """The beginnings of modules of Python's library, which is what the model learnt from."""
    files = [path for path in sorted(Path(os.__file__).parent.glob("[a-h]*.py")) if path.stat().st_size > _LONG_BYTES]
    return [path.read_text()[:_BEGINNING_CHARS] for path in files[:count]]


def _cores() -> int:
    return len(os.sched_getaffinity(0))
