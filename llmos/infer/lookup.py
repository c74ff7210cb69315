"""Prompt lookup: what followed the last words where they stood before is likely to follow again.

Saxena, "Prompt lookup decoding", 2023 (https://github.com/apoorvumang/prompt-lookup-decoding). It costs nothing, and is
right for what repeats: code, edits, answers that quote their question.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmos.infer.speculative import Ask

LONGEST, SHORTEST = 4, 2
"""How many last tokens are looked up: longer matches are right more often, and come first."""


class PromptLookup:
    """Drafts from the request's own tokens."""

    def __init__(self) -> None:
        self._indices: dict[str, _Index] = {}

    def draft(self, asked: Sequence[Ask]) -> list[tuple[int, ...]]:
        """See :class:`llmos.infer.speculative.Drafter`."""
        return [self._indices.setdefault(ask.id, _Index()).following(ask.tokens, ask.most) for ask in asked]

    def remove(self, id: str) -> None:
        """See :class:`llmos.infer.speculative.Drafter`."""
        self._indices.pop(id, None)

    def close(self) -> None:
        """See :class:`llmos.infer.speculative.Drafter`."""
        self._indices.clear()


class _Index:
    """Where each run of tokens stood last, by the place after it."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._known = 0

    def following(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        for end in range(self._known, len(tokens)):  # not yet the last run, for which nothing follows
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self._after[tuple(tokens[end - length : end])] = end
        self._known = len(tokens)
        for length in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
            start = self._after.get(tuple(tokens[-length:]))
            if start is not None:
                return _continued(tokens, start, most)
        return ()


def _continued(tokens: Sequence[int], start: int, most: int) -> tuple[int, ...]:
    """``most`` tokens from ``start`` on; where they reach the end, what repeats goes on repeating."""
    period = tokens[start : start + most]
    return tuple((list(period) * -(-most // len(period)))[:most])
