"""Which documents are trained on and which are held out: their content decides, not their place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from llmos.errors import DataError
from llmos.train.documents import Document, Piece, Unusable, read

_SHOWN = 10
"""Unusable documents that a message names."""
_HIGHER_THAN_ALL = b"\xff" * 33


@dataclass(slots=True)
class Census:
    """What there is, counted without keeping it: documents, bytes, unusable ones, and the digests at either end."""

    limit: bytes
    """Digests below it are held out, if that leaves some on either side."""
    documents: int = 0
    size_bytes: int = 0
    below_limit: int = 0
    lowest: bytes = _HIGHER_THAN_ALL
    highest: bytes = b""
    unusable: int = 0
    examples: list[str] = field(default_factory=list)

    def count(self, found: Iterable[Document | Unusable]) -> Census:
        """Add what was ``found``."""
        for item in found:
            if isinstance(item, Unusable):
                self.unusable += 1
                if len(self.examples) < _SHOWN:
                    self.examples.append(str(item))
                continue
            self.documents += 1
            self.size_bytes += len(item.content)
            self.below_limit += item.digest < self.limit
            self.lowest, self.highest = min(self.lowest, item.digest), max(self.highest, item.digest)
        return self

    @property
    def complaint(self) -> str:
        """The unusable documents, the first by name."""
        more = self.unusable - len(self.examples)
        listed = "\n  ".join([*self.examples, *([f"and {more:,} more"] if more else [])])
        return f"{self.unusable:,} unusable documents:\n  {listed}"

    def merge(self, other: Census) -> None:
        """Add what ``other`` has counted."""
        self.documents += other.documents
        self.size_bytes += other.size_bytes
        self.below_limit += other.below_limit
        self.lowest, self.highest = min(self.lowest, other.lowest), max(self.highest, other.highest)
        self.unusable += other.unusable
        self.examples = (self.examples + other.examples)[:_SHOWN]


@dataclass(frozen=True, slots=True)
class Split:
    """Documents whose digest is below ``limit`` are held out; a single text is cut at byte ``cut`` instead."""

    limit: bytes
    cut: int | None = None

    def parts(self, document: Document) -> Iterator[tuple[bool, Document]]:
        """The document, or its two parts, each with whether it is held out."""
        if self.cut is None:
            yield document.digest < self.limit, document
        else:
            yield False, Document.of(document.content[: self.cut], document.place)
            yield True, Document.of(document.content[self.cut :], document.place)


EVERYTHING = Split(_HIGHER_THAN_ALL)
"""All documents are held out: nothing is trained on."""


def limit_of(fraction: float) -> bytes:
    """The digest below which a ``fraction`` of all digests lies."""
    first = math.ceil(fraction * 2**64)
    return first.to_bytes(8, "big") if first < 2**64 else _HIGHER_THAN_ALL


def split(census: Census) -> Split:
    """About the fraction asked for is held out, at least one document on each side.

    A document stays on its side when others come and go. Raises DataError when there are no two different ones.
    """
    if census.lowest >= census.highest:
        what = "there are no documents" if not census.documents else "there is one document only"
        hint = "Add text to data.path."
        raise DataError(f"{what}: expected at least two, to train on one and hold out another", hint=hint)
    if not census.below_limit:
        return Split(census.lowest + b"\0")
    return Split(census.limit if census.below_limit < census.documents else census.highest)


def split_lines(piece: Piece, fraction: float) -> Split:
    """A single text is split by lines, its end is held out. Raises DataError when it has one line only."""
    (text,) = read(piece)
    assert isinstance(text, Document)
    lines = text.content.splitlines(keepends=True)
    if len(lines) < 2:
        raise DataError(
            "the text is one file of one line: expected at least two lines, to train on one and hold out another",
            hint="Add text to data.path.",
            param="data.path",
        )
    first = min(max(round(len(lines) * (1 - fraction)), 1), len(lines) - 1)
    return Split(b"", sum(map(len, lines[:first])))
