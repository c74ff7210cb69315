"""How many replicas a load needs, and what a million tokens costs.

A replica generates for many sequences at once (continuous batching): a step reads all weights and all cached keys and
values once, so it takes as long as that or as its products, whichever is longer. Prompts are read in between. Pipeline
stages each work on a share of the sequences at a time, so that all are busy. How many replicas that takes, says
core/replicas, as it does for services that run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llmos.core.capacity.hardware import GB, KINDS, Hardware
from llmos.core.capacity.memory import Memory, serving_memory
from llmos.core.capacity.meshes import USABLE
from llmos.core.capacity.shape import ModelShape
from llmos.core.capacity.time import ATTENTION_SHARE, MEMORY_SHARE
from llmos.core.replicas import needed
from llmos.errors import UsageError

NUMBER = 2
"""Bytes of a cached number, and of a weight that is not rounded: bf16."""
MOST_SEQUENCES = 512
WEIGHTS: Mapping[str, float] = MappingProxyType({"bf16": 2.0, "int8": 1.0, "int4": 4.125 / 8})
"""Bytes of a weight in the layers' matrices: as ``llmos compress`` writes them, int4 with a scale for 128 columns."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests per second, tokens of a prompt and of an answer; and the promises, in seconds: time to the first token,
    and per token after it."""

    requests_per_s: float
    prompt: int
    answer: int
    first_token_s: float = 1.0
    token_s: float = 0.05

    @property
    def context(self) -> int:
        """Tokens of a sequence when it ends."""
        return self.prompt + self.answer


@dataclass(frozen=True, slots=True)
class Serving:
    """One way to serve a load. ``sequences`` at once, ``requests_per_s`` and the times are of one replica at its limit;
    a request may wait for its place besides."""

    tp: int
    pp: int
    sequences: int
    memory: Memory
    requests_per_s: float
    first_token_s: float
    token_s: float
    replicas: int
    accelerators: int
    price_per_hour: float | None
    price_per_million: float | None


def serve(shape: ModelShape, load: Load, kind: Hardware, weights: str = "bf16") -> list[Serving]:
    """The ways to keep ``load``'s promises, with the fewest accelerators first: replicas of tp × pp ranks on one node.

    ``weights`` is one of :data:`WEIGHTS`. Raises UsageError when no replica can, with what it comes to and what would.
    """
    splits = list(_splits(shape, kind))
    found = [way for tp, pp in splits if (way := _best(shape, load, kind, weights, tp, pp))]
    if not found:
        largest = max(splits, key=lambda split: (split[0] * split[1], split[0]))
        raise _refusal(shape, load, kind, weights, *largest)
    return sorted(found, key=lambda way: (way.accelerators, way.tp * way.pp, way.pp))


def prompt_seconds(shape: ModelShape, tokens: int, kind: Hardware, tp: int = 1) -> float:
    """Seconds to read a prompt of ``tokens`` tokens: products and causal attention, and sums between tp ranks."""
    rate, products = kind.sustained_flops("bf16") * tp, shape.num_layers * shape.layer_products
    attention = shape.num_layers * tokens * shape.attention_flops(tokens) / (rate * ATTENTION_SHARE)
    return 2 * tokens * products / rate + attention + _sums(shape, tokens, kind, tp)


def token_seconds(
    shape: ModelShape, sequences: float, context: float, kind: Hardware, tp: int = 1, weight: float = NUMBER
) -> float:
    """Seconds of a step that adds a token to each of ``sequences`` sequences of ``context`` tokens; ``weight`` is the
    bytes of one in the layers' matrices."""
    cache = 2 * shape.num_layers * shape.kv_size * NUMBER * sequences * context
    layers, output = shape.num_layers * shape.layer_products, shape.vocabulary_parameters
    read_s = (layers * weight + output * NUMBER + cache) / tp / (MEMORY_SHARE * kind.memory_bandwidth)
    products_s = sequences * (layers + output) * 2 / (tp * kind.sustained_flops("bf16"))
    return max(read_s, products_s) + _sums(shape, sequences, kind, tp)


def _splits(shape: ModelShape, kind: Hardware) -> Iterator[tuple[int, int]]:
    """tp and pp of replicas: powers of two that divide the heads, or are no more than the layers, on one node."""
    powers = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= kind.per_node]
    for tp in (n for n in powers if n <= 16 and shape.num_kv_heads % n == 0 and shape.num_heads % n == 0):
        yield from ((tp, pp) for pp in powers if tp * pp <= kind.per_node and pp <= min(8, shape.num_layers))


def _sums(shape: ModelShape, tokens: float, kind: Hardware, tp: int) -> float:
    """Seconds of the two sums of a layer between tp ranks."""
    moved = 2 * 2 * (tp - 1) / tp * tokens * shape.hidden_size * NUMBER
    return shape.num_layers * moved / kind.intra_bandwidth


def _handed_on(shape: ModelShape, tokens: float, kind: Hardware, pp: int) -> float:
    """Seconds in which ``tokens`` tokens' stream passes from stage to stage."""
    return (pp - 1) * tokens * shape.hidden_size * NUMBER / kind.intra_bandwidth


def _best(shape: ModelShape, load: Load, kind: Hardware, weights: str, tp: int, pp: int) -> Serving | None:
    """As many sequences at once as need the fewest replicas, of those that fit and keep the promises."""
    best, weight = None, WEIGHTS[weights]
    reading_s = prompt_seconds(shape, load.prompt, kind, tp) + _handed_on(shape, load.prompt, kind, pp)
    for sequences in range(pp, MOST_SEQUENCES + 1, pp):
        memory = serving_memory(shape, sequences, load.context, NUMBER, tp, pp=pp, weight=weight)
        if memory.total > kind.memory_bytes * USABLE:
            break
        at_once = sequences / pp
        step_s = token_seconds(shape, at_once, load.prompt + load.answer / 2, kind, tp, weight)
        step_s += _handed_on(shape, at_once, kind, pp)
        pauses_s = at_once * reading_s  # while a sequence is answered, each of the others' prompts is read once
        held_s = load.answer * step_s + pauses_s
        busy = min(pauses_s / held_s, 0.99)
        first_s = reading_s * (1 + busy / (2 * (1 - busy))) + step_s  # waiting for the prompts before it: M/D/1
        token_s = held_s / load.answer
        if first_s <= load.first_token_s and token_s <= load.token_s:
            replicas = max(1, needed(load.requests_per_s, sequences, held_s, load.first_token_s - first_s))
            if best is None or replicas <= best.replicas:
                best = _serving(load, kind, (tp, pp), sequences, memory, held_s, first_s, token_s, replicas)
    return best


def _serving(
    load: Load,
    kind: Hardware,
    split: tuple[int, int],
    sequences: int,
    memory: Memory,
    held_s: float,
    first_s: float,
    token_s: float,
    replicas: int,
) -> Serving:
    ranks, rate = replicas * split[0] * split[1], sequences / held_s
    price = None if kind.price is None else ranks * kind.price
    tokens = load.requests_per_s * load.answer * 3600
    million = None if price is None else price / tokens * 1e6
    return Serving(*split, sequences, memory, rate, first_s, token_s, replicas, ranks, price, million)


def _refusal(shape: ModelShape, load: Load, kind: Hardware, weights: str, tp: int, pp: int) -> UsageError:
    """Why not even the largest replica will do, and what would."""
    weight = WEIGHTS[weights]
    memory = serving_memory(shape, pp, load.context, NUMBER, tp, pp=pp, weight=weight)
    hint = "Relax the promises, or take a faster kind."
    if memory.total > kind.memory_bytes * USABLE:
        what = f"one sequence takes {memory.total / GB:.0f} GB on each of {tp * pp} × {kind.kind}: more than they have"
        would = ", ".join(_would_hold(shape, load, kind, weights))
        return UsageError(what, hint=f"What would fit: {would or 'nothing that was tried'}.", param="model")
    first_s = prompt_seconds(shape, load.prompt, kind, tp)
    each_s = token_seconds(shape, 1, load.prompt, kind, tp, weight)
    what = f"{tp * pp} × {kind.kind} read the prompt in {first_s:.3g} s and make a token in {each_s:.3g} s with nothing"
    return UsageError(f"{what} else to do: promised are {load.first_token_s:g} s and {load.token_s:g} s", hint=hint)


def _would_hold(shape: ModelShape, load: Load, kind: Hardware, weights: str) -> Iterator[str]:
    """Smaller weights on this kind, and other kinds with these weights, that have room for one sequence."""
    smaller = [(kind, name) for name in WEIGHTS if WEIGHTS[name] < WEIGHTS[weights]]
    for other, name in [*smaller, *((other, weights) for other in KINDS.values() if other.overlap)]:
        held = (
            serving_memory(shape, pp, load.context, NUMBER, tp, pp=pp, weight=WEIGHTS[name]).total
            for tp, pp in _splits(shape, other)
        )
        if min(held) <= other.memory_bytes * USABLE:
            yield f"{name} weights" if other is kind else other.kind
