"""Server-sent events as OpenAI's clients read them (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MEDIA_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_ESCAPED = json.JSONEncoder(separators=(",", ":"))


def sse(event: Mapping[str, Any]) -> bytes:
    """One event. JSON has no line ends of its own, so one ``data:`` line holds it."""
    return b"data: " + encode(event) + b"\n\n"


def encode(value: Mapping[str, Any]) -> bytes:
    """Compact JSON in UTF-8. What is no Unicode text (lone surrogates) is escaped."""
    try:
        return _COMPACT.encode(value).encode()
    except UnicodeEncodeError:
        return _ESCAPED.encode(value).encode()


def events(stream: bytes) -> list[dict[str, Any]]:
    """The events of a whole ``stream`` that :func:`sse` wrote, without the closing DONE."""
    lines = (line.removeprefix(b"data: ") for line in stream.split(b"\n\n") if line)
    return [json.loads(line) for line in lines if line != b"[DONE]"]
