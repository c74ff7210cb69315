"""The rows of serving on a GPU: an 8 B Llama of random weights in bf16, in process."""

from __future__ import annotations

import torch

from benchmarks.rows import Measured, Options, Unmeasured
from benchmarks.serve_compare import Engine, Setting, Workload, compare
from benchmarks.serve_contenders import Generate
from benchmarks.serve_engine import InProcess
from benchmarks.serve_load import prompts
from benchmarks.serve_models import LLAMA_8B

_COPY_BYTES = 1 << 31
_NEEDED_BYTES = 40 << 30
_MANY = 256
_ON_CARD = {"device": "cuda", "memory_bytes": None}  # of its cache: what is free


def gpu_roofline_b1(options: Options) -> Measured:
    """Bytes of weights per second at batch 1, against what the card reads: half of what a copy moves."""
    card = _card(options)
    engine = InProcess(LLAMA_8B.written(), dtype="bfloat16", **_ON_CARD)
    try:
        engine.run(prompts(1), 1)
        turns = [engine.run(prompts(1, seed=turn), 1, new=64) for turn in range(1, 4)]
    finally:
        engine.close()
    step_s, bandwidth = min(load.itl_s for load in turns), _read_bytes_per_s()
    rate = LLAMA_8B.read_bytes / step_s
    return Measured(rate / 1e9, bandwidth / 1e9, rate / bandwidth, card, also={"tokens_per_s": 1 / step_s})


def gpu_decode_c256(options: Options) -> Measured:
    """256 requests at once, against transformers' ``generate`` on the same batch."""
    card = _card(options)
    model = LLAMA_8B.written()
    setting = [Setting(1)]
    engines = {
        "llmos": Engine(lambda s: InProcess(model, dtype=s.dtype, **_ON_CARD, max_batch=_MANY), setting),
        "transformers": Engine(lambda s: Generate(LLAMA_8B, s.threads, s.dtype, device="cuda"), setting),
    }
    workload = Workload(f"c{_MANY}", _MANY, _MANY, new=32 if options.quick else 128)
    found = compare(engines, [workload], 1 if options.quick else 3, LLAMA_8B.name)[workload.name]
    mine, peer = found["llmos"], found["transformers"]
    return Measured(mine.rate, peer.rate, mine.over(peer), card)


def _card(options: Options) -> str:
    """Its name. Raises Unmeasured where there is none, or a small one."""
    if options.device != "cuda" or not torch.cuda.is_available():
        raise Unmeasured("skipped: needs a CUDA card with 40 GiB; run with DEVICE=cuda")
    free, _ = torch.cuda.mem_get_info()
    if free < _NEEDED_BYTES:
        raise Unmeasured(f"skipped: {free / 2**30:.0f} GiB are free on the card, 40 are needed")
    return torch.cuda.get_device_name()


def _read_bytes_per_s() -> float:
    """The faster of five copies of 2 GiB within the card, of which half is reading."""
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds: list[float] = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        seconds.append(begin.elapsed_time(end) / 1000)
    return 2 * _COPY_BYTES / min(seconds)
