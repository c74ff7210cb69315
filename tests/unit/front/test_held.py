"""What the front door believes to be cached: as the engine decides, and never more than there is room for."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.front.held import Held
from llmos.infer.blocks import Blocks
from llmos.infer.prefix import BLOCK_TOKENS, digests

PROMPTS = st.lists(st.text("01", min_size=1, max_size=6), max_size=20)


def test_prefixes_that_come_again_outlive_prompts_that_do_not() -> None:
    held = Held(10)
    for _ in range(2):
        held.use([b"1", b"2"])
    for number in range(100, 200):
        held.use([b"%d" % number])
    assert held.prefix([b"1", b"2", b"3"]) == 2 and len(held) == 10


def test_the_end_of_a_prompt_goes_before_its_beginning() -> None:
    held = Held(3)
    held.use([b"%d" % number for number in range(5)])
    assert held.prefix([b"%d" % number for number in range(5)]) == 3


def test_a_block_is_of_no_use_without_those_before_it() -> None:
    held = Held(10)
    held.use([b"1", b"2", b"3"])
    assert held.prefix([b"0", b"2", b"3"]) == 0


def test_less_room_forgets_at_once() -> None:
    held = Held(10)
    held.use([b"%d" % number for number in range(10)])
    held.resize(4)
    assert len(held) == 4 and held.prefix([b"%d" % number for number in range(10)]) == 4


@given(PROMPTS, st.integers(1, 12))
def test_never_more_than_there_is_room_for(prompts: list[str], room: int) -> None:
    held = Held(room)
    for text in prompts:
        held.use([text[: end + 1].encode() for end in range(len(text))])
        assert len(held) <= room


@settings(max_examples=settings.default.max_examples // 2)
@given(PROMPTS)
def test_with_room_for_all_the_engine_finds_what_is_believed(prompts: list[str]) -> None:
    held, blocks = Held(1000), Blocks(1000)
    for text in prompts:
        tokens = [int(part) for part in text for _ in range(BLOCK_TOKENS)]
        found = digests(tokens, b"key")
        table = blocks.open([*tokens, 0], b"key")
        assert table.cached == held.prefix(found) * BLOCK_TOKENS
        assert table.grow(len(tokens))
        table.commit(tokens, len(tokens))
        table.release()
        held.use(found)
