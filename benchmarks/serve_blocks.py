"""``block_replay``: how much of the prompts in a trace the prefix cache finds, by the block manager alone.

The trace is Mooncake's synthetic one (Qin et al., FAST 2025): prompts as the hashes of their blocks of 512 tokens. Each
of its blocks is one block here, of tokens that no other hash has. Prompts come one after another; their answers are
not in the trace. The peer is a plain LRU of as many blocks.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from benchmarks.rows import Measured, Options
from llmos.infer.blocks import Blocks
from llmos.infer.step import BLOCK_TOKENS

TRACE = "mooncake_synthetic.jsonl"
ROOM = 16_000
_Prompts = list[list[int]]


def block_replay(options: Options) -> Measured:
    """The share of all blocks that is found with room for 16,000; the unbounded one is in ``why``."""
    prompts = _read(_trace(options))
    total = sum(map(len, prompts))
    unbounded = found_of(prompts, total) / total
    bounded, lru = found_of(prompts, ROOM) / total, _found_by_lru(prompts, ROOM) / total
    assert round(unbounded, 3) >= 0.640, f"unbounded, {unbounded:.4f} of the blocks are found: expected 0.640"
    why = f"{unbounded:.3f} unbounded; {len(prompts)} prompts of {total} blocks, one after another"
    return Measured(bounded, lru, bounded / lru, why)


def _trace(options: Options) -> Path:
    if options.data is not None and (options.data / TRACE).exists():
        return options.data / TRACE
    return options.file(f"traces/{TRACE}")


def _read(trace: Path) -> _Prompts:
    return [json.loads(line)["hash_ids"] for line in trace.read_text().splitlines()]


def found_of(prompts: _Prompts, room: int) -> int:
    """Blocks that were cached when their prompt came, with ``room`` for cached ones, and one for an answer."""
    blocks = Blocks(room + 1)
    found = 0
    for hashes in prompts:
        tokens = list(tokens_of(hashes))
        table = blocks.open(tokens, b"")
        found += table.cached // BLOCK_TOKENS
        assert table.grow(len(tokens)), f"a prompt of {len(hashes)} blocks: there are {room}"
        table.commit(tokens, len(tokens))
        table.release()
    return found


def tokens_of(hashes: Iterable[int]) -> Iterable[int]:
    """A prompt of one block for each of ``hashes``, and of one token more."""
    for number in hashes:
        yield from [number] * BLOCK_TOKENS
    yield 0  # the answer's first: so the prompt's last block may be found too


def _found_by_lru(prompts: _Prompts, room: int) -> int:
    cached: OrderedDict[int, None] = OrderedDict()
    found = 0
    for hashes in prompts:
        found += next((number for number, block in enumerate(hashes) if block not in cached), len(hashes))
        for block in hashes:
            cached[block] = None
            cached.move_to_end(block)
        while len(cached) > room:
            cached.popitem(last=False)
    return found
