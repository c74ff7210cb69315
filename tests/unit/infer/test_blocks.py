"""Pages of the cache: counted, shared by prefix within one salt, and the least useful given away first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.errors import UsageError
from llmos.infer.blocks import Blocks, Table
from llmos.infer.step import BLOCK_TOKENS

TOKENS = tuple(range(4 * BLOCK_TOKENS + 3))


def _block(number: int) -> list[int]:
    return [number] * BLOCK_TOKENS


def match(blocks: Blocks, tokens: Sequence[int], salt: bytes) -> int:
    """How many of ``tokens`` are cached."""
    return len(blocks.table(salt).prefix(tokens)) * BLOCK_TOKENS


def _keep(blocks: Blocks, tokens: list[int] | tuple[int, ...], salt: bytes = b"") -> list[int]:
    """Compute ``tokens``, and give their blocks back."""
    table = blocks.open(tokens, salt)
    assert table.grow(len(tokens))
    table.commit(tokens, len(tokens))
    held = list(table.blocks)
    table.release()
    return held


def test_a_prompt_that_comes_again_finds_its_full_blocks() -> None:
    blocks = Blocks(8)
    first = _keep(blocks, TOKENS)
    assert blocks.free == 8
    table = blocks.open(TOKENS, b"")
    assert table.cached == 4 * BLOCK_TOKENS and list(table.blocks) == first[:4]
    assert blocks.free == 4
    assert match(blocks, [*TOKENS[: 2 * BLOCK_TOKENS], 99, *TOKENS[2 * BLOCK_TOKENS + 1 :]], b"") == 2 * BLOCK_TOKENS


def test_the_last_token_is_always_computed() -> None:
    blocks = Blocks(8)
    _keep(blocks, TOKENS)
    assert match(blocks, TOKENS[: 2 * BLOCK_TOKENS], b"") == BLOCK_TOKENS
    assert match(blocks, TOKENS[: 2 * BLOCK_TOKENS + 1], b"") == 2 * BLOCK_TOKENS


def test_a_block_is_found_only_after_the_same_beginning() -> None:
    blocks = Blocks(8)
    _keep(blocks, TOKENS)
    assert match(blocks, [99, *TOKENS[1:]], b"") == 0


def test_one_tenant_finds_nothing_of_anothers() -> None:
    blocks = Blocks(16)
    _keep(blocks, TOKENS, b"one")
    assert match(blocks, TOKENS, b"another") == 0
    _keep(blocks, TOKENS, b"another")
    assert match(blocks, TOKENS, b"one") == match(blocks, TOKENS, b"another") == 4 * BLOCK_TOKENS


def test_a_shared_block_is_free_when_the_last_gives_it_back() -> None:
    blocks = Blocks(8)
    _keep(blocks, TOKENS)
    one, two = blocks.open(TOKENS, b""), blocks.open(TOKENS, b"")
    assert one.blocks == two.blocks and blocks.free == 4
    one.release()
    assert blocks.free == 4
    two.release()
    assert blocks.free == 8


def test_too_few_blocks_take_none() -> None:
    blocks = Blocks(4)
    table = blocks.open(TOKENS, b"")
    assert not table.grow(4 * BLOCK_TOKENS + 1)
    assert not table.blocks and blocks.free == 4
    assert table.grow(4 * BLOCK_TOKENS) and not blocks.free
    table.shrink(BLOCK_TOKENS + 1)
    assert len(table.blocks) == 2 and blocks.free == 2


def test_the_end_of_a_prompt_goes_before_its_beginning() -> None:
    blocks = Blocks(5)
    _keep(blocks, TOKENS)  # 4 blocks stay, 1 was not full
    table = blocks.open([99] * 3 * BLOCK_TOKENS, b"")
    assert table.grow(3 * BLOCK_TOKENS)
    assert match(blocks, TOKENS, b"") == 2 * BLOCK_TOKENS


def test_the_least_recently_used_goes_first() -> None:
    blocks = Blocks(3)
    for number in (1, 2, 3):
        _keep(blocks, _block(number))
    _keep(blocks, _block(4))
    assert [match(blocks, [*_block(number), 0], b"") > 0 for number in (1, 2, 3, 4)] == [False, True, True, True]


def test_a_prefix_in_use_outlives_prompts_that_never_come_back() -> None:
    blocks = Blocks(10)
    prefix = [*_block(1), *_block(2), 0]
    _keep(blocks, prefix)
    _keep(blocks, prefix)
    for number in range(100, 200):
        _keep(blocks, _block(number))
    assert match(blocks, prefix, b"") == 2 * BLOCK_TOKENS


def test_a_new_prompt_has_time_to_be_used_again() -> None:
    blocks = Blocks(11)
    for number in range(10):
        _keep(blocks, [*_block(number), 0])
        _keep(blocks, [*_block(number), 0])
    for number in range(100, 110):
        _keep(blocks, _block(number))
    found = [match(blocks, [*_block(number), 0], b"") > 0 for number in range(105, 110)]
    assert found == [False, True, True, True, True]  # of 11, three, and the one that was free


def test_what_is_no_longer_used_goes_at_last() -> None:
    blocks = Blocks(10)
    for number in range(20):  # each is used again, so each would like to stay
        _keep(blocks, [*_block(number), 0])
        _keep(blocks, [*_block(number), 0])
    assert match(blocks, [*_block(0), 0], b"") == 0
    assert match(blocks, [*_block(19), 0], b"") == BLOCK_TOKENS


def test_a_lost_beginning_computed_again_makes_the_rest_of_use() -> None:
    blocks = Blocks(4)
    tokens = [*_block(1), *_block(2), 0]
    table = blocks.open(tokens, b"")
    assert table.grow(len(tokens))
    table.commit(tokens, len(tokens))
    again = blocks.table(b"")  # both computed the prompt at the same time
    assert again.grow(BLOCK_TOKENS)
    again.commit(tokens, BLOCK_TOKENS)
    again.release()
    assert blocks.free == 1 and match(blocks, tokens, b"") == 2 * BLOCK_TOKENS
    table.release()
    assert blocks.free == 4 and match(blocks, tokens, b"") == 2 * BLOCK_TOKENS


def test_without_the_prefix_cache_nothing_is_found() -> None:
    blocks = Blocks(8, prefix_cache=False)
    _keep(blocks, TOKENS)
    assert match(blocks, TOKENS, b"") == 0 and blocks.free == 8


def test_a_cache_of_no_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match="0 blocks: expected at least 1"):
        Blocks(0)


PROMPTS = st.text("01", min_size=1, max_size=6).map(lambda parts: [int(p) for p in parts for _ in range(BLOCK_TOKENS)])


@settings(max_examples=settings.default.max_examples // 2)
@given(st.lists(st.tuples(PROMPTS, st.sampled_from([b"a", b"b"]), st.integers(0, 3)), max_size=15), st.integers(6, 20))
def test_no_block_holds_anothers_tokens(steps: list[tuple[list[int], bytes, int]], count: int) -> None:
    blocks = Blocks(count)
    holds: dict[int, tuple[bytes, list[int]]] = {}  # block → the salt, and all tokens up to its last
    tables: list[Table] = []
    for tokens, salt, stay in steps:
        while len(tables) > stay:
            tables.pop(0).release()
        table = blocks.open(tokens, salt)
        for number, block in enumerate(table.blocks):
            assert holds[block] == (salt, tokens[: (number + 1) * BLOCK_TOKENS])
        held = {block for other in tables for block in other.blocks}
        found = len(table.blocks)
        if not table.grow(len(tokens)):
            table.release()
            continue
        assert not held & set(table.blocks[found:]), "a block is given to two"
        for number, block in enumerate(table.blocks):
            holds[block] = (salt, tokens[: (number + 1) * BLOCK_TOKENS])
        table.commit(tokens, len(tokens))
        tables.append(table)
        assert blocks.free == count - len(held | set(table.blocks))
    for table in tables:
        table.release()
    assert blocks.free == count


@settings(max_examples=settings.default.max_examples // 2)
@given(st.lists(PROMPTS, max_size=8))
def test_with_room_for_all_every_full_block_is_found(prompts: list[list[int]]) -> None:
    blocks = Blocks(100)
    seen: set[tuple[int, ...]] = set()
    for tokens in prompts:
        lengths = range(BLOCK_TOKENS, len(tokens), BLOCK_TOKENS)
        assert match(blocks, tokens, b"") == max((n for n in lengths if tuple(tokens[:n]) in seen), default=0)
        _keep(blocks, tokens)
        seen.update(tuple(tokens[:n]) for n in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS))
