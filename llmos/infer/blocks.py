"""The pages of a key-value cache: who holds which, and which of them can be used again for another prompt.

Pages with reference counts: PagedAttention (Kwon et al., SOSP 2023). A full block is known by a hash of its tokens and
of all before them, so that equal prefixes are found block by block, and only whole blocks are shared: nobody writes to
a block that another reads. Blocks that nobody holds stay as long as there is room; see ``idle.py`` for who goes first.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from llmos.errors import UsageError
from llmos.infer.idle import Idle
from llmos.infer.prefix import BLOCK_TOKENS, begin, extend


def blocks_for(length: int) -> int:
    """Blocks that hold ``length`` tokens."""
    return -(-length // BLOCK_TOKENS)


class Blocks:
    """``count`` blocks of BLOCK_TOKENS tokens. Without ``prefix_cache``, none is ever shared. Raises UsageError."""

    def __init__(self, count: int, prefix_cache: bool = True) -> None:
        if count < 1:
            raise UsageError(f"a key-value cache of {count} blocks: expected at least 1", param="count")
        self.count, self.prefix_cache = count, prefix_cache
        self._references = [0] * count
        self._digests: list[bytes | None] = [None] * count
        self._cached: dict[bytes, int] = {}
        self._unused = list(range(count - 1, -1, -1))  # holds nothing anybody could want
        self._idle: Idle[int] = Idle()  # cached, held by nobody
        self._again = [False] * count  # cached, and of use to more than one

    @property
    def free(self) -> int:
        """Blocks that can be had now: unused, or cached and held by nobody."""
        return len(self._unused) + len(self._idle)

    def open(self, tokens: Sequence[int], salt: bytes) -> Table:
        """A table that holds the cached prefix of ``tokens``; see :meth:`Table.open`."""
        table = self.table(salt)
        table.open(tokens)
        return table

    def table(self, salt: bytes) -> Table:
        """An empty table. It finds what tables of the same ``salt`` have committed, and nothing else."""
        return Table(self, salt)

    def take(self, wanted: int) -> list[int]:
        """``wanted`` blocks to write to, each held once; none when there are too few."""
        if wanted > self.free:
            return []
        return [self._take() for _ in range(wanted)]

    def share(self, block: int) -> None:
        """Hold a cached block once more."""
        if not self._references[block]:
            self._idle.remove(block)
        self._references[block] += 1
        self._again[block] = True

    def drop(self, block: int) -> None:
        """Hold ``block`` once less. Of two cached blocks of the same use, the one dropped first goes first."""
        assert self._references[block] > 0, f"block {block} is given back by nobody who holds it"
        self._references[block] -= 1
        if self._references[block]:
            return
        if self._digests[block] is None:
            self._unused.append(block)
        else:
            self._idle.add(block, self._again[block])

    def find(self, digest: bytes) -> int | None:
        """The block that is cached under ``digest``."""
        return self._cached.get(digest)

    def cache(self, block: int, digest: bytes) -> None:
        """Let others find ``block``, which is full and never written again; if its equal is held by others, only that.

        An equal that nobody holds is replaced: it was lost with the blocks before it, and is now of use again.
        """
        equal = self._cached.get(digest)
        if equal is not None:
            if self._references[equal]:
                return
            self._idle.remove(equal)
            self._forget(equal)
            self._unused.append(equal)
            self._again[block] = True
        self._cached[digest] = block
        self._digests[block] = digest

    def _take(self) -> int:
        if self._unused:
            block = self._unused.pop()
        else:
            block = self._idle.pop()
            self._forget(block)
        self._references[block] = 1
        return block

    def _forget(self, block: int) -> None:
        digest = self._digests[block]
        assert digest is not None
        del self._cached[digest]
        self._digests[block], self._again[block] = None, False


class Table:
    """The blocks of one sequence, in the order of its tokens. ``cached`` of its tokens were there when it opened."""

    def __init__(self, pool: Blocks, salt: bytes) -> None:
        self._pool = pool
        self._digests = begin(salt)
        self._committed = 0
        self.blocks = array("i")  # native code and numpy read it without a copy
        self.cached = 0

    def prefix(self, tokens: Sequence[int]) -> list[int]:
        """The blocks that hold the longest cached prefix of ``tokens``, the last excepted: its logits are wanted."""
        found: list[int] = []
        if self._pool.prefix_cache:
            for number in range((len(tokens) - 1) // BLOCK_TOKENS):
                block = self._pool.find(self._digest(tokens, number))
                if block is None:
                    break
                found.append(block)
        return found

    def open(self, tokens: Sequence[int]) -> None:
        """Hold the cached prefix of ``tokens``; a table that was released must get the tokens it had, or more."""
        assert not self.blocks, "the table is open"
        self.blocks.extend(self.prefix(tokens))
        for block in self.blocks:
            self._pool.share(block)
        self._committed = len(self.blocks)
        self.cached = self._committed * BLOCK_TOKENS

    def grow(self, length: int) -> bool:
        """Have room for ``length`` tokens. When there are too few blocks: False, and nothing is taken."""
        wanted = blocks_for(length) - len(self.blocks)
        if wanted <= 0:
            return True
        taken = self._pool.take(wanted)
        self.blocks.extend(taken)
        return bool(taken)

    def shrink(self, length: int) -> None:
        """Give back the blocks that ``length`` tokens do not need."""
        keep = blocks_for(length)
        assert keep >= self._committed, "a block that others may hold stays"
        while len(self.blocks) > keep:
            self._pool.drop(self.blocks.pop())

    def commit(self, tokens: Sequence[int], length: int) -> None:
        """The keys and values of ``tokens[:length]`` are in the blocks: let others find the full ones."""
        if not self._pool.prefix_cache:
            return
        for number in range(self._committed, length // BLOCK_TOKENS):
            self._pool.cache(self.blocks[number], self._digest(tokens, number))
            self._committed = number + 1

    def release(self) -> None:
        """Give all blocks back, the last first: it goes before the others, which are of use without it."""
        for block in reversed(self.blocks):
            self._pool.drop(block)
        del self.blocks[:]
        self._committed = self.cached = 0

    def _digest(self, tokens: Sequence[int], number: int) -> bytes:
        """The hash of block ``number`` of ``tokens`` and of all before it. Remembered: tokens never change."""
        if len(self._digests) <= number + 1:
            extend(self._digests, tokens, number + 1)
        return self._digests[number + 1]
