"""What a request has used: told by the replica that answers it, read by the front door without parsing the answer.

A whole answer has ``"usage": {…}`` near its end: that is read. A stream says so only if it was asked to; so a replica
writes a comment of server-sent events (a line that begins with a colon, which clients ignore) before the last event,
and the front door takes it out. Nothing else in a stream can look like it: JSON has no line ends of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmos.usage import Tokens

_COMMENT = b": llmos-usage "
_END = b"\n\n"
_KEY = b'"usage":'
_LONGEST_USAGE = 4096
_DECODER = json.JSONDecoder()


def comment(tokens: Tokens) -> bytes:
    """For a stream of server-sent events, before its last event."""
    return _COMMENT + json.dumps(tokens).encode() + _END


def taken_out(piece: bytes) -> tuple[bytes, Tokens | None]:
    """``piece`` (whole server-sent events) without the comment, and what that said, if it was there."""
    if _COMMENT not in piece:
        return piece, None
    start = 0 if piece.startswith(_COMMENT) else piece.find(b"\n" + _COMMENT) + 1
    end = piece.find(_END, start)
    if end < 0 or not piece.startswith(_COMMENT, start):
        return piece, None  # somebody talks about it
    told = Tokens(*json.loads(piece[start + len(_COMMENT) : end]))
    return piece[:start] + piece[end + len(_END) :], told


def of_answer(answer: bytes) -> Tokens | None:
    """What a whole answer (JSON) says that it used: its last ``usage``. None if it says nothing."""
    place = len(answer)
    while (place := answer.rfind(_KEY, 0, place)) >= 0:
        text = answer[place + len(_KEY) : place + len(_KEY) + _LONGEST_USAGE].decode(errors="replace").lstrip()
        try:
            found, _ = _DECODER.raw_decode(text)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("prompt_tokens"), int):
            return tokens_of(found)
    return None


def tokens_of(usage: Mapping[str, Any]) -> Tokens:
    """OpenAI's ``usage``: embeddings have no completion, and not every engine says what was cached."""
    details = usage.get("prompt_tokens_details") or {}
    return Tokens(usage["prompt_tokens"], details.get("cached_tokens") or 0, usage.get("completion_tokens") or 0)
