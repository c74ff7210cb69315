"""``route_hit`` and ``route_imbalance``: what four caches are worth behind one door, by accounting blocks alone.

The trace is Mooncake's synthetic one (Qin et al., FAST 2025). The replicas have room for 4,000 blocks each; the peer is
one cache of 16,000, which gets the prompts one after another, and so finds each that is complete. How prompts and
answers take time says :mod:`benchmarks.frontdoor.replay`.

The router's QUEUE_SHARE, LATELY_SHARE and SPREAD, and the replicas' speed, were settled on this trace: the last choice
by its first half, earlier ones by a sketch that had seen all of it. So the second half, which is printed too, is no
trace that nobody had looked at.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from hashlib import blake2b

from benchmarks import serve_blocks
from benchmarks.frontdoor.replay import TRACE_BLOCK, Asked, Outcome, Replay, Routed, read
from benchmarks.rows import Measured, Options
from llmos.infer.prefix import BLOCK_TOKENS

REPLICAS, ROOM = 4, 4_000
QUICK = 1_000
DECISIONS = 1_000
FINE = TRACE_BLOCK // BLOCK_TOKENS


def route_hit(options: Options) -> Measured:
    """The share of blocks that is found; ``ratio`` is to one cache, ``of_round_robin`` to taking turns."""
    asked = _asked(options)
    ours, lost, turns = _routed(options), _routed(options, lost=True), Replay(asked, REPLICAS, ROOM).run(None)
    whole = serve_blocks.found_of([list(one.blocks) for one in asked], REPLICAS * ROOM) / ours.blocks
    late = _half(options)
    also = {
        "of_round_robin": ours.hit / turns.hit,
        "round_robin": turns.hit,
        "second_half": late[0].hit,
        "second_half_ratio": late[0].hit / late[1],
        "lost": lost.hit,
        "lost_ratio": lost.hit / whole,
        "decision_us": 1e6 * statistics.median(_decisions(options)),
        "decision_p99_us": 1e6 * statistics.quantiles(_decisions(options), n=100)[98],
    }
    return Measured(ours.hit, whole, ours.hit / whole, _why(options, ours, turns), also=also)


def route_imbalance(options: Options) -> Measured:
    """Tokens of prompts and answers that the busiest replica had to compute, by the mean; ``served`` counts those that
    were cached as well."""
    ours, lost, late = _routed(options), _routed(options, lost=True), _half(options)[0]
    also = {
        "served": _imbalance(ours.served),
        "second_half": _imbalance(late.computed),
        "second_half_served": _imbalance(late.served),
        "lost": _imbalance(lost.computed),
        "lost_served": _imbalance(lost.served),
    }
    turns = _imbalance(Replay(_asked(options), REPLICAS, ROOM).run(None).computed)
    return Measured(_imbalance(ours.computed), turns, why="max / mean; `lost`: of those that are left", also=also)


@functools.cache
def _asked(options: Options) -> Sequence[Asked]:
    asked = read(options.file("traces/" + serve_blocks.TRACE))
    return asked[:QUICK] if options.quick else asked


@functools.cache
def _routed(options: Options, lost: bool = False) -> Outcome:
    """Our router; ``lost``: the second replica goes in the middle of the trace."""
    asked = _asked(options)
    return Replay(asked, REPLICAS, ROOM, asked[len(asked) // 2].at_s if lost else math.inf).run(
        Routed(ROOM, TRACE_BLOCK)
    )


@functools.cache
def _half(options: Options) -> tuple[Outcome, float]:
    """The second half alone, caches empty at its beginning: ours, and what one cache finds."""
    asked = _asked(options)[len(_asked(options)) // 2 :]
    ours = Replay(asked, REPLICAS, ROOM).run(Routed(ROOM, TRACE_BLOCK))
    return ours, serve_blocks.found_of([list(one.blocks) for one in asked], REPLICAS * ROOM) / ours.blocks


@functools.cache
def _decisions(options: Options) -> Sequence[float]:
    """Seconds of each decision, prompts cut into blocks of 16 tokens as the engine does."""
    policy = Routed(ROOM * FINE, BLOCK_TOKENS, _finely)
    Replay(_asked(options)[:DECISIONS], REPLICAS, ROOM).run(policy)
    return policy.took_s


def _finely(asked: Asked) -> list[bytes]:
    return [
        blake2b(b"%d %d" % (block, part), digest_size=32).digest() for block in asked.blocks for part in range(FINE)
    ]


def _imbalance(tokens: Sequence[int]) -> float:
    return max(tokens) / statistics.mean(tokens)


def _why(options: Options, ours: Outcome, turns: Outcome) -> str:
    first = (
        f"until the first token {statistics.mean(ours.first_s):.2f} s, by turns {statistics.mean(turns.first_s):.2f} s"
    )
    return f"{len(_asked(options))} prompts of {ours.blocks} blocks; {first}"
