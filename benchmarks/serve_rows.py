"""The rows of serving that set our server, over HTTP, against vLLM's and against transformers."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.peers import Missing
from benchmarks.rows import Measured, Options, Unmeasured
from benchmarks.serve_compare import Engine, Found, Setting, Workload, compare
from benchmarks.serve_contenders import Generate, Server, ours, thread_counts, vllm
from benchmarks.serve_engine import InProcess
from benchmarks.serve_load import prompts
from benchmarks.serve_models import QWEN_500M, SMOLLM_135M, Shape
from llmos.infer.dtypes import pick_dtype

OURS, VLLM, TRANSFORMERS = "llmos", "vLLM", "transformers"
CONCURRENCY = (1, 8, 32, 64)
PREFILL = Workload("prefill_2048", 1, 2, prompt=2048, new=1)


def decode_b1(options: Options) -> Measured:
    """One request at a time."""
    return _decode(options, 1)


def decode_c8(options: Options) -> Measured:
    """Eight requests at once."""
    return _decode(options, 8)


def decode_c32(options: Options) -> Measured:
    """32 requests at once."""
    return _decode(options, 32)


def decode_c64(options: Options) -> Measured:
    """64 requests at once."""
    return _decode(options, 64)


def prefill_2048(options: Options) -> Measured:
    """Prompts of 2,048 tokens, one at a time: until the first token of the answer."""
    found = _served(SMOLLM_135M, options)[PREFILL.name]
    mine, peer = found[OURS], max((VLLM, TRANSFORMERS), key=lambda name: found[name].rate)
    return Measured(mine.rate, found[peer].rate, mine.over(found[peer]), _told(found), peer=peer)


def fallback_b1(options: Options) -> Measured:
    """The pure-torch step, one request at a time."""
    return _fallback(options, 1)


def fallback_c32(options: Options) -> Measured:
    """The pure-torch step, 32 requests at once."""
    return _fallback(options, 32)


def cold_start(options: Options) -> Measured:
    """From the start of the process to the first token, files cached: the median of three starts by turns."""
    _need_cpu(options)
    starts: dict[str, Callable[[Shape, int], Server]] = {OURS: ours, VLLM: vllm}
    seconds: dict[str, list[float]] = {name: [] for name in starts}
    SMOLLM_135M.written()
    for turn in range(1 if options.quick else 4):
        for name, start in starts.items():
            found_s = _first_token_s(start)
            if turn or options.quick:  # the first start reads the files
                seconds[name].append(found_s)
    mine_s, theirs_s = (statistics.median(seconds[name]) for name in starts)
    return Measured(mine_s, theirs_s, theirs_s / mine_s, "one thread; from the start of the process, over HTTP")


def _first_token_s(start: Callable[[Shape, int], Server]) -> float:
    began = time.perf_counter()
    try:
        with start(SMOLLM_135M, 1) as server:
            server.run(prompts(1), 1, new=1)
            return time.perf_counter() - began
    except Missing as missing:
        raise Unmeasured(str(missing)) from missing


def _decode(options: Options, concurrency: int) -> Measured:
    name = f"c{concurrency}"
    found = _served(SMOLLM_135M, options)[name]
    mine, peer, slow = (found[engine] for engine in (OURS, VLLM, TRANSFORMERS))
    also = {
        "transformers": slow.rate,
        "ratio_to_transformers": mine.over(slow),
        "ttft_ms": mine.ttft_s() * 1000,
        "vllm_ttft_ms": peer.ttft_s() * 1000,
        "ttft_ratio": mine.ttft_s() / peer.ttft_s(),
        "itl_ms": statistics.median(load.itl_s for load in mine.loads) * 1000,
    }
    larger = None if options.quick else _served(QWEN_500M, options).get(name)
    if larger is not None:
        also |= {f"{engine}_500m": one.rate for engine, one in larger.items()}
        also["ratio_500m"] = larger[OURS].over(larger[VLLM])
    return Measured(mine.rate, peer.rate, mine.over(peer), _told(found), also=also)


@functools.cache
def _served(shape: Shape, options: Options) -> dict[str, dict[str, Found]]:
    """Servers and transformers on all workloads, in one run.

    The larger model gets a few, in the settings that were best for the small one, and none in a quick run.
    """
    _need_cpu(options)
    small = shape is SMOLLM_135M
    new = 16 if options.quick else 32
    some = CONCURRENCY if small else CONCURRENCY[:2]
    workloads = [Workload(f"c{n}", n, max(n, 2 if options.quick else 4), new=new) for n in some]
    counts = thread_counts()[-1:] if options.quick else thread_counts()
    engines = _engines(shape, counts)
    if not small:
        best = _served(SMOLLM_135M, options)[workloads[-1].name]
        engines = {name: Engine(engine.start, [best[name].setting]) for name, engine in engines.items()}
    turns = 3 if small and not options.quick else 1
    try:
        return compare(engines, [*workloads, PREFILL] if small else workloads, turns, shape.name)
    except Missing as missing:
        raise Unmeasured(str(missing)) from missing


def _engines(shape: Shape, counts: Sequence[int]) -> dict[str, Engine]:
    return {
        OURS: Engine(lambda s: ours(shape, s.threads, s.dtype), [Setting(n) for n in counts]),
        VLLM: Engine(lambda s: vllm(shape, s.threads, s.dtype), _for_peers(counts)),
        TRANSFORMERS: Engine(lambda s: Generate(shape, s.threads, s.dtype), _for_peers(counts)),
    }


def _for_peers(counts: Sequence[int]) -> list[Setting]:
    """In bf16, as we; also in float32 where the processor has no product of bf16 and they would emulate it."""
    emulated = pick_dtype("auto", torch.device("cpu")) != torch.bfloat16
    return [Setting(n, dtype) for dtype in ("bfloat16", *(["float32"] if emulated else [])) for n in counts]


def _fallback(options: Options, concurrency: int) -> Measured:
    found = _without_native(options)[f"c{concurrency}"]
    mine, peer = found[OURS], found[TRANSFORMERS]
    return Measured(mine.rate, peer.rate, mine.over(peer), _told(found))


@functools.cache
def _without_native(options: Options) -> dict[str, dict[str, Found]]:
    _need_cpu(options)
    shape = SMOLLM_135M

    def torch_only(setting: Setting) -> InProcess:
        return InProcess(shape.written(), runner="torch", dtype=setting.dtype, threads=setting.threads)

    counts, turns = thread_counts(), 1 if options.quick else 3
    engines = {
        OURS: Engine(torch_only, [Setting(n) for n in counts]),
        TRANSFORMERS: Engine(lambda s: Generate(shape, s.threads, s.dtype), _for_peers(counts)),
    }
    workloads = [Workload(f"c{n}", n, max(n, 2)) for n in (1, 32)]
    return compare(engines, workloads, turns, f"{shape.name}, without the native step")


def _need_cpu(options: Options) -> None:
    if options.device != "cpu":
        raise Unmeasured("skipped: a row of the CPU; run without DEVICE")


def _told(found: Mapping[str, Found]) -> str:
    return "; ".join(f"{name} {one}" for name, one in found.items())
