"""The names of blocks: the same for the same tokens and salt, however they are computed."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from llmos.infer.prefix import BLOCK_TOKENS, begin, digests, extend

TOKENS = st.lists(st.integers(0, 2**40), max_size=5 * BLOCK_TOKENS)


@given(TOKENS, st.binary(max_size=8), st.lists(st.integers(0, 6)))
def test_in_parts_or_at_once(tokens: list[int], salt: bytes, ends: list[int]) -> None:
    full, chain = len(tokens) // BLOCK_TOKENS, begin(salt)
    for end in ends:
        extend(chain, tokens, min(end, full))
    extend(chain, array("q", tokens), full)
    assert chain[1:] == digests(tokens, salt) and len(chain) == 1 + full


@given(TOKENS, st.integers(0, 5 * BLOCK_TOKENS), st.integers(0, 2**40))
def test_a_changed_token_changes_its_block_and_all_after_it(tokens: list[int], at: int, other: int) -> None:
    changed = [other if number == at else token for number, token in enumerate(tokens)]
    same = [one == two for one, two in zip(digests(tokens, b""), digests(changed, b""), strict=True)]
    first = len(same) if changed == tokens else min(at // BLOCK_TOKENS, len(same))
    assert same == [number < first for number in range(len(same))]


@given(TOKENS)
def test_salts_have_nothing_in_common(tokens: list[int]) -> None:
    assert not set(digests(tokens, b"a")) & set(digests(tokens, b"b"))


def test_names_stay_what_they_are() -> None:
    """A front door and a replica of two releases may meet while one of them is upgraded."""
    assert (
        digests(range(BLOCK_TOKENS), b"key")[0].hex()
        == "cec375515ed6148d1d5f002a485a5f68e7b344d17e844cf0a4e8d7d99825531f"
    )
