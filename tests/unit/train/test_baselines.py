import gzip
import math
import random

import pytest

from llmos.train.baselines import gzip_bits, unigram_bits


def _gzip_bytes(text: bytes) -> int:
    return len(gzip.compress(text, 9))


def test_gzip_takes_the_smaller_way() -> None:
    alike = [b"the same words again and again, " * 3 + bytes([n]) for n in range(20)]
    together, apart = _gzip_bytes(b"".join(alike)), sum(map(_gzip_bytes, alike))
    assert together < apart
    assert gzip_bits(alike) == 8 * together / sum(map(len, alike))
    # two kinds of bytes, each cheap on its own: one Huffman table for both costs more than a second header
    rng = random.Random(0)
    kinds = [bytes(rng.choices(range(low, low + 64), k=15_000)) for low in (0, 64, 128, 192)]
    together, apart = _gzip_bytes(b"".join(kinds)), sum(map(_gzip_bytes, kinds))
    assert gzip_bits(kinds) == 8 * min(together, apart) / 60_000
    with pytest.raises(ValueError, match="no text"):
        gzip_bits([b"", b""])


def test_unigram_is_the_cross_entropy() -> None:
    assert unigram_bits(b"", b"any text") == 8.0
    # add one: a has 4 of 259, b has 1
    assert unigram_bits(b"aaa", b"ab") == pytest.approx((math.log2(259 / 4) + math.log2(259 / 1)) / 2)
    with pytest.raises(ValueError, match="no text"):
        unigram_bits(b"aaa", b"")
