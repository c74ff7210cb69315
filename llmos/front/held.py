"""Which blocks a replica's cache holds, as far as the front door can know: those of the prompts it has sent there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from llmos.infer.idle import Idle


class Held(Idle[bytes]):
    """The digests of at most ``room`` blocks. Who goes first is decided as the engine itself does."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._again or digest in self._once

    def prefix(self, digests: Sequence[bytes]) -> int:
        """How many of ``digests``, from the first on, are held."""
        return sum(1 for _ in takewhile(self.__contains__, digests))

    def use(self, digests: Sequence[bytes]) -> None:
        """A prompt of these blocks is computed. As in the engine, its end goes before its beginning."""
        once, again = self._once, self._again
        for digest in reversed(digests):
            if digest in again:
                again.move_to_end(digest)
            elif digest in once:
                del once[digest]
                again[digest] = None
            else:
                once[digest] = None
        self.resize(self.room)

    def resize(self, room: int) -> None:
        """Have room for ``room`` blocks from now on."""
        self.room = room
        while len(self) > room:
            self.pop()
