import gzip
import math

import pytest

from llmos.train.baselines import byte_counts, gzip_bytes, unigram_bits


def test_gzip_is_that_of_the_tool() -> None:
    parts = [b"the same words again and again, " * 3 + bytes([n]) for n in range(20)]
    assert gzip_bytes(parts) == len(gzip.compress(b"".join(parts), 9))


def test_unigram_is_the_cross_entropy() -> None:
    assert unigram_bits(byte_counts(b""), byte_counts(b"any text")) == 8.0
    # add one: a has 4 of 259, b has 1
    expected = (math.log2(259 / 4) + math.log2(259 / 1)) / 2
    assert unigram_bits(byte_counts(b"aaa"), byte_counts(b"ab")) == pytest.approx(expected)
    with pytest.raises(ValueError, match="no text"):
        unigram_bits(byte_counts(b"aaa"), byte_counts(b""))
