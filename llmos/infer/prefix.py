"""What a prompt's blocks are called: the hash of a block's tokens and of all before it.

The engine finds cached blocks by it, and the front door which replica has them: both must compute the very same. So the
front door may import this file, which needs neither torch nor numpy.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

BLOCK_TOKENS = 16
"""Tokens in a block of the key-value cache: hashing every 16 tokens is cheap, and a sequence wastes half a block."""

_DIGEST_BYTES = 32  # nobody finds two prompts with one hash: what is cached for one must not answer another
_BLOCK_BYTES = BLOCK_TOKENS * array("q").itemsize


def begin(salt: bytes) -> list[bytes]:
    """A chain without blocks, for :func:`extend`. What is hashed with one ``salt`` is not found with another."""
    return [blake2b(salt, digest_size=_DIGEST_BYTES, person=b"llmos salt").digest()]


def extend(chain: list[bytes], tokens: Sequence[int], blocks: int) -> None:
    """Append to ``chain``, which has 1 + some digests of ``tokens``, up to those of the first ``blocks`` blocks."""
    last = chain[-1]
    data = array("q", tokens[(len(chain) - 1) * BLOCK_TOKENS : blocks * BLOCK_TOKENS]).tobytes()
    for at in range(0, len(data), _BLOCK_BYTES):
        last = blake2b(last + data[at : at + _BLOCK_BYTES], digest_size=_DIGEST_BYTES).digest()
        chain.append(last)


def digests(tokens: Sequence[int], salt: bytes) -> list[bytes]:
    """The digest of each full block of ``tokens``, as the engine calls them for requests of that ``salt``."""
    chain = begin(salt)
    extend(chain, tokens, len(tokens) // BLOCK_TOKENS)
    return chain[1:]
