"""What the native step does by itself, in process: no scheduler, no sampling, no HTTP.

    python -m benchmarks.serve_native [--threads N] [--quick]

A random Llama of SmolLM's 135 M shape; of random weights nothing but the speed means anything. The bandwidth of memory
is measured in the same run, in turn with the steps, by the same threads.
"""

from __future__ import annotations

import argparse
import json
import mmap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmos.compress.quantize import quantization_for
from llmos.infer.native.bindings import native_step
from llmos.infer.native.runner import NativeRunner
from llmos.infer.shard import LayerShard, Matrix, Shard
from llmos.infer.step import BLOCK_TOKENS, Step
from llmos.models import ModelConfig
from llmos.models.quantization import LINEAR, OUTPUT, Quantization, Scheme

SMOL = ModelConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    max_position=4096,
)
CONTEXT = 200
"""Tokens that a decoded one sees."""

READ_BYTES = 1 << 29
"""What is read to measure memory: far beyond any cache."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of each repetition."""

    seconds: tuple[float, ...]

    @property
    def typical_s(self) -> float:
        return median(self.seconds)


def in_turn(runs: Sequence[Callable[[], object]], repeats: int) -> list[Timing]:
    """Each run ``repeats`` times after one to warm up, one after another, so that a slow moment meets all of them."""
    seconds: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats + 1):
        for run, times in zip(runs, seconds, strict=True):
            began = time.perf_counter()
            run()
            if repeat:
                times.append(time.perf_counter() - began)
    return [Timing(tuple(times)) for times in seconds]


def read_bytes_per_s(threads: int) -> Callable[[], float]:
    """Measures how fast ``threads`` threads read memory, in bytes per second, whenever it is called."""
    pages = mmap.mmap(-1, READ_BYTES)  # huge ones, as those of the weights
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    block = torch.frombuffer(pages, dtype=torch.int32).fill_(1)

    def measure() -> float:
        began = time.perf_counter()
        native_step().read(block.data_ptr(), READ_BYTES, threads)
        return READ_BYTES / (time.perf_counter() - began)

    return measure


def random_shard(config: ModelConfig, quantization: Quantization | None = None) -> Shard:
    """A whole model in bf16, or quantized as `llmos compress` does it."""
    inner, head = (quantization.schemes[LINEAR], quantization.scheme(OUTPUT)) if quantization else (None, None)
    rows = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    hidden, features = config.hidden_size, config.intermediate_size

    def layer() -> LayerShard:
        matrices = (
            random_matrix(rows, hidden, inner),
            random_matrix(hidden, config.num_heads * config.head_dim, inner),
            random_matrix(2 * features, hidden, inner),
            random_matrix(hidden, features, inner),
        )
        ones = torch.ones(hidden)
        return LayerShard(ones, matrices[0], None, None, None, matrices[1], ones, *matrices[2:])

    output = random_matrix(config.vocab_size, hidden, head)
    embedding = torch.randn(config.vocab_size, hidden).bfloat16()
    layers = tuple(layer() for _ in range(config.num_layers))
    return Shard(config, config.num_heads, config.num_kv_heads, 0, layers, embedding, torch.ones(hidden), output)


def random_matrix(outputs: int, inputs: int, scheme: Scheme | None) -> Matrix:
    """Normal with deviation 0.02, or whole numbers of the same size once scaled."""
    if scheme is None:
        return Matrix((torch.randn(outputs, inputs) * 0.02).bfloat16(), 16)
    if scheme.bits == 8:
        return Matrix(torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8), 8, torch.full((outputs, 1), 3e-4))
    packed = torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8)
    return Matrix(packed, 4, torch.full((outputs, scheme.groups(inputs)), 4e-3), scheme.group)


def decode_step(sequences: int, context: int = CONTEXT) -> Step:
    """One token for each of ``sequences``, at position ``context``, each with blocks of its own."""
    row = context // BLOCK_TOKENS + 1
    at_S = np.arange(sequences + 1, dtype=np.int32)
    blocks_SM = np.arange(sequences * row, dtype=np.int32).reshape(sequences, row)
    return Step(at_S[:-1] % 97, np.full(sequences, context, np.int32), at_S, blocks_SM, at_S[:-1])


def prefill_step(tokens: int) -> Step:
    """All of one prompt at once; the logits of its last token."""
    at_N, starts_S = np.arange(tokens, dtype=np.int32), np.array([0, tokens], np.int32)
    blocks_SM = np.arange(-(-tokens // BLOCK_TOKENS), dtype=np.int32)[None]
    return Step(at_N % 97, at_N, starts_S, blocks_SM, at_N[-1:])


def runner_of(
    config: ModelConfig, threads: int | None = None, quantization: Quantization | None = None
) -> NativeRunner:
    """A runner with room for the largest step measured here."""
    return NativeRunner(random_shard(config, quantization), 64 * (CONTEXT // BLOCK_TOKENS + 1), threads=threads)


def stepper(runner: NativeRunner, step: Step) -> Callable[[], Tensor]:
    """Computes ``step`` whenever it is called."""

    def run() -> Tensor:
        runner.start(step)
        return runner.finish()

    return run


def measure(config: ModelConfig = SMOL, threads: int | None = None, repeats: int = 30) -> dict[str, float]:
    """The figures by name: tokens/s, ratios, bytes/s."""
    plain = runner_of(config, threads)
    threads = plain.threads
    row: dict[str, float] = {"threads": threads}
    read = read_bytes_per_s(threads)
    decode = stepper(plain, decode_step(1))
    bandwidth: list[float] = []
    (single, _) = in_turn([decode, lambda: bandwidth.append(read())], repeats)
    weight_bytes = int(str(plain.stats()["weight_bytes"]))
    row["read_bytes_per_s"] = median(bandwidth[1:])
    row["decode_b1"] = 1 / single.typical_s
    row["roofline_b1"] = weight_bytes / single.typical_s / row["read_bytes_per_s"]
    for batch in (8, 32, 64):
        (timing,) = in_turn([stepper(plain, decode_step(batch))], max(3, repeats // 2))
        row[f"decode_b{batch}"] = batch / timing.typical_s
    (timing,) = in_turn([stepper(plain, prefill_step(2048))], 3)
    row["prefill_2048"] = 2048 / timing.typical_s
    for bits in (8, 4):
        small = runner_of(config, threads, quantization_for(config, bits))
        few, ours = in_turn([stepper(small, decode_step(1)), decode], repeats)
        row[f"int{bits}_b1"] = 1 / few.typical_s
        row[f"int{bits}_b1_ratio"] = ours.typical_s / few.typical_s
        small.close()
    plain.close()
    return row


def torch_prefill_s(config: ModelConfig, tokens: int, dtype: torch.dtype) -> float:
    """Seconds that plain torch takes for the layers of a prompt."""
    shard = random_shard(config)
    layers = [[m.weight.to(dtype) for m in (la.qkv, la.out, la.gate_up, la.down)] for la in shard.layers]
    x_ND = torch.randn(tokens, config.hidden_size, dtype=dtype)
    heads = [config.num_heads, config.num_kv_heads, config.num_kv_heads]

    def run() -> None:
        hidden_ND = x_ND
        for qkv, out, gate_up, down in layers:
            q, k, v = F.linear(F.rms_norm(hidden_ND, [config.hidden_size]), qkv).split(
                [h * config.head_dim for h in heads], 1
            )
            q, k, v = (x.view(1, tokens, -1, config.head_dim).transpose(1, 2) for x in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            hidden_ND = hidden_ND + F.linear(mixed.transpose(1, 2).reshape(tokens, -1), out)
            gate, up = F.linear(F.rms_norm(hidden_ND, [config.hidden_size]), gate_up).chunk(2, 1)
            hidden_ND = hidden_ND + F.linear(F.silu(gate) * up, down)

    with torch.no_grad():
        (timing,) = in_turn([run], 2)
    return timing.typical_s


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the native step.")
    parser.add_argument("--threads", type=int, help="default: found by measurement")
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    args = parser.parse_args()
    row = measure(threads=args.threads, repeats=5 if args.quick else 30)
    torch.set_num_threads(int(row["threads"]))
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        row[f"torch_prefill_2048_{name}"] = 2048 / torch_prefill_s(SMOL, 2048, dtype)
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
