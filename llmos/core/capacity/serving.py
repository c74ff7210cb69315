"""How many replicas a load needs, and what a million tokens costs.

A replica generates for many sequences at once (continuous batching): a step reads all weights and all cached keys and
values once, so it takes as long as that or as its products, whichever is longer. Prompts are read in between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmos.core.capacity.hardware import GB, Hardware
from llmos.core.capacity.memory import Memory, serving_memory
from llmos.core.capacity.meshes import USABLE
from llmos.core.capacity.shape import ModelShape
from llmos.core.capacity.time import ATTENTION_SHARE, MEMORY_SHARE
from llmos.errors import UsageError

HEADROOM = 0.8
"""Of what a replica can do, the share it is given: arrivals come in bursts."""
NUMBER = 2
"""Bytes of a weight and of a cached number: bf16."""
MOST_SEQUENCES = 512


@dataclass(frozen=True, slots=True)
class Load:
    """Requests per second, tokens of a prompt and of an answer; and the promises, in seconds: time to the first token,
    and per token after it."""

    requests_per_s: float
    prompt: int
    answer: int
    first_token_s: float = 1.0
    token_s: float = 0.05


@dataclass(frozen=True, slots=True)
class Serving:
    """One way to serve a load. ``sequences`` at once, and ``requests_per_s``, are of one replica at its limit."""

    tp: int
    sequences: int
    memory: Memory
    requests_per_s: float
    first_token_s: float
    token_s: float
    replicas: int
    accelerators: int
    price_per_hour: float | None
    price_per_million: float | None


def serve(shape: ModelShape, load: Load, kind: Hardware) -> list[Serving]:
    """The ways to keep ``load``'s promises, with the fewest accelerators first: replicas of tp = 1, 2, 4, … ranks.

    Raises UsageError when no replica on one node can, and says what it comes to.
    """
    sizes = [tp for tp in (1, 2, 4, 8, 16) if tp <= kind.per_node and shape.num_kv_heads % tp == 0]
    found = [way for tp in sizes if (way := _best(shape, load, kind, tp))]
    if not found:
        raise UsageError(_why_not(shape, load, kind, sizes[-1]), hint="Relax the promises, or take a faster kind.")
    return sorted(found, key=lambda way: (way.accelerators, way.tp))


def prompt_seconds(shape: ModelShape, tokens: int, kind: Hardware, tp: int = 1) -> float:
    """Seconds to read a prompt of ``tokens`` tokens: products and causal attention, and sums between tp ranks."""
    rate, products = kind.sustained_flops("bf16") * tp, shape.num_layers * shape.layer_products
    attention = shape.num_layers * tokens * shape.attention_flops(tokens) / (rate * ATTENTION_SHARE)
    return 2 * tokens * products / rate + attention + _sums(shape, tokens, kind, tp)


def token_seconds(shape: ModelShape, sequences: int, context: float, kind: Hardware, tp: int = 1) -> float:
    """Seconds of a step that adds a token to each of ``sequences`` sequences of ``context`` tokens."""
    cache = 2 * shape.num_layers * shape.kv_size * NUMBER * sequences * context
    weights = (shape.num_layers * shape.layer_products + shape.vocabulary_parameters) * NUMBER
    read_s = (weights + cache) / tp / (MEMORY_SHARE * kind.memory_bandwidth)
    products_s = sequences * weights / NUMBER * 2 / (tp * kind.sustained_flops("bf16"))
    return max(read_s, products_s) + _sums(shape, sequences, kind, tp)


def _sums(shape: ModelShape, tokens: float, kind: Hardware, tp: int) -> float:
    """Seconds of the two sums of a layer between tp ranks."""
    moved = 2 * 2 * (tp - 1) / tp * tokens * shape.hidden_size * NUMBER
    return shape.num_layers * moved / kind.intra_bandwidth


def _best(shape: ModelShape, load: Load, kind: Hardware, tp: int) -> Serving | None:
    """The most sequences at once that fit and keep the promises."""
    context, best = load.prompt + load.answer, None
    for sequences in range(1, MOST_SEQUENCES + 1):
        memory = serving_memory(shape, sequences, context, NUMBER, tp)
        if memory.total > kind.memory_bytes * USABLE:
            break
        reading_s = prompt_seconds(shape, load.prompt, kind, tp)
        step_s = token_seconds(shape, sequences, load.prompt + load.answer / 2, kind, tp)
        alone = sequences / (load.answer * step_s)  # requests per second if prompts took no time
        rate = alone / (1 + alone * reading_s)
        busy = min(rate * HEADROOM * reading_s, 0.99)
        first_s = reading_s * (1 + busy / (2 * (1 - busy))) + step_s  # waiting for the prompts before it: M/D/1
        token_s = step_s / (1 - busy)
        if first_s <= load.first_token_s and token_s <= load.token_s:
            best = _serving(load, kind, tp, sequences, memory, rate, first_s, token_s)
    return best


def _serving(
    load: Load, kind: Hardware, tp: int, sequences: int, memory: Memory, rate: float, first_s: float, token_s: float
) -> Serving:
    replicas = max(1, math.ceil(load.requests_per_s / (rate * HEADROOM)))
    price = None if kind.price is None else replicas * tp * kind.price
    tokens = load.requests_per_s * load.answer * 3600
    million = None if price is None or not tokens else price / tokens * 1e6
    return Serving(tp, sequences, memory, rate, first_s, token_s, replicas, replicas * tp, price, million)


def _why_not(shape: ModelShape, load: Load, kind: Hardware, tp: int) -> str:
    memory = serving_memory(shape, 1, load.prompt + load.answer, NUMBER, tp)
    if memory.total > kind.memory_bytes * USABLE:
        return f"one sequence takes {memory.total / GB:.0f} GB on each of {tp} × {kind.kind}: more than they have"
    first_s, each_s = prompt_seconds(shape, load.prompt, kind, tp), token_seconds(shape, 1, load.prompt, kind, tp)
    return (
        f"{tp} × {kind.kind} read the prompt in {first_s:.3g} s and make a token in {each_s:.3g} s with nothing else "
        f"to do: promised are {load.first_token_s:g} s and {load.token_s:g} s"
    )
