"""The rows of serving that measure the native step alone, in process: no scheduler, no sampling, no HTTP.

Weights are random, of the 135 M shape; the number of threads is the one that the runner finds to be fastest.
"""

from __future__ import annotations

from statistics import median

from benchmarks.rows import Measured, Options, Unmeasured
from benchmarks.serve_native import SMOL, decode_step, in_turn, read_bytes_per_s, runner_of, stepper
from llmos.compress.quantize import quantization_for


def roofline_b1(options: Options) -> Measured:
    """Bytes of weights read per second at batch 1, against what the same threads read of memory, by turns."""
    _need_cpu(options)
    runner = runner_of(SMOL)
    read, found = read_bytes_per_s(runner.threads), list[float]()
    (step, _) = in_turn([stepper(runner, decode_step(1)), lambda: found.append(read())], _repeats(options))
    weight_bytes, threads = int(str(runner.stats()["weight_bytes"])), runner.threads
    runner.close()
    rate, bandwidth = weight_bytes / step.typical_s, median(found[1:])
    also = {"tokens_per_s": 1 / step.typical_s, "read_bytes_per_s": bandwidth, "threads": threads}
    return Measured(rate / 1e9, bandwidth / 1e9, rate / bandwidth, f"bf16, {threads} threads", also=also)


def int8_b1(options: Options) -> Measured:
    """Weights as `llmos compress --int8` makes them."""
    return _quantized(options, 8)


def int4_b1(options: Options) -> Measured:
    """Weights as `llmos compress --int4` makes them."""
    return _quantized(options, 4)


def _quantized(options: Options, bits: int) -> Measured:
    _need_cpu(options)
    plain, quantization = runner_of(SMOL), quantization_for(SMOL, bits)
    small = runner_of(SMOL, plain.threads, quantization)
    few, all_bits = in_turn([stepper(runner, decode_step(1)) for runner in (small, plain)], _repeats(options))
    why = f"{plain.threads} threads; {quantization}"
    plain.close()
    small.close()
    return Measured(1 / few.typical_s, 1 / all_bits.typical_s, all_bits.typical_s / few.typical_s, why)


def _repeats(options: Options) -> int:
    return 10 if options.quick else 50


def _need_cpu(options: Options) -> None:
    if options.device != "cpu":
        raise Unmeasured("skipped: a row of the CPU; run without DEVICE")
