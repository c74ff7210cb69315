"""Chats as tokens: what the model's template makes of them, and which tokens are the assistant's to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmos.errors import DataError, UsageError
from llmos.models import Tokenizer


def encode(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The tokens of a chat; each that is not the assistant's is ``~token``: negative, it does not count.

    The assistant's are what it would have to generate: from where the template asks for an answer to the token that
    ends the turn, which is included. Raises DataError when the template does not take the chat, or when it changes
    what it wrote of earlier messages, as those do that drop earlier thoughts: no model could have answered that way.
    """
    try:
        turns = tokenizer.encode_turns(messages)
    except UsageError as error:
        raise DataError(error.message, hint=error.hint) from error
    ids: list[int] = []
    for asked, answer in turns:
        said = _until_end(answer, tokenizer.stop_ids)
        ids += [~token for token in asked] + answer[:said] + [~token for token in answer[said:]]
    return ids


def _until_end(answer: Sequence[int], stops: frozenset[int]) -> int:
    """How many tokens there are up to the last that ends a turn: a template may write a line's end after it."""
    ends = [place for place, token in enumerate(answer) if token in stops]
    return ends[-1] + 1 if ends else len(answer)
