"""One call of a tool, read while it is written: its name, the text of its arguments, and where it ends."""

from __future__ import annotations

import json
import re

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_NAMED = re.compile(r"\s*([\w-]+)(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*(?=\{)")
_MAYBE_NAMED = re.compile(r"\s*[\w-]*(?:\[[A-Z_]*\]?\w*)*\s*")


class Call:
    """A call that is being read, after what it ``begin`` s with; ``named``: its name may stand before its arguments."""

    def __init__(self, begin: str, *, named: bool) -> None:
        self.begin, self.raw, self.name = begin, "", ""
        self.begun = self.ended = self.wrong = self.listed = False
        self.number = -1
        self._named = named
        self._object, self._arguments = _Object(), _Object()
        self._at = self._sent = -1  # in ``raw``: where the arguments begin, and what was passed on of them

    def push(self, text: str) -> str:
        """Returns what follows the call."""
        if self.ended or self.wrong:
            return text
        if self._named:
            return self._push_named(text)
        if not self._object.length:  # nothing but blanks so far
            text, self.raw = self.raw + text, ""
            start = text.lstrip()
            if not start.startswith("{"):
                self.wrong, self.raw = bool(start), "" if start else text
                return text if start else ""
        self._read(text)
        if self._at < 0 and (head := _HEAD.match(self.raw)):
            self.name, self._at, self._sent = _string(head[1]), head.end(), head.end()
            self._arguments.read(self.raw[self._at :])
        return self._cut()

    def take(self) -> str:
        """More of the arguments."""
        end = len(self.raw) if self._arguments.end is None else self._at + self._arguments.end
        more, self._sent = self.raw[self._sent : end], max(end, self._sent)
        return more

    def raw_with(self, more: str) -> str:
        """What was read, as text."""
        return self.begin + self.raw + more

    def _push_named(self, text: str) -> str:
        """Before the arguments: a name, or the beginning of a list."""
        self.raw += text
        if self.raw.lstrip().startswith("["):
            self.listed = True
            at = self.raw.index("[") + 1
            rest, self.raw = self.raw[at:], self.raw[:at]
            return rest
        if head := _NAMED.match(self.raw):
            self.name, self._at, self._sent = head[1], head.end(), head.end()
            self._named, more, self.raw = False, self.raw[head.end() :], self.raw[: head.end()]
            self._read(more)
            return self._cut()
        self.wrong = _MAYBE_NAMED.fullmatch(self.raw) is None
        rest, self.raw = (self.raw, "") if self.wrong else ("", self.raw)
        return rest

    def _read(self, text: str) -> None:
        self.raw += text
        self._object.read(text)
        if self._at >= 0:
            self._arguments.read(text)

    def _cut(self) -> str:
        """What was read beyond the end."""
        if self._object.end is None:
            return ""
        self.ended, beyond = True, len(self.raw) - (self._object.length - self._object.end)
        rest, self.raw = self.raw[beyond:], self.raw[:beyond]
        return rest


class _Object:
    """Finds the ``end`` of a JSON object in a text of ``length`` characters so far, which begins with it."""

    def __init__(self) -> None:
        self.end: int | None = None
        self.length = self._depth = 0
        self._quoted = self._escaped = False

    def read(self, text: str) -> None:
        """More of it."""
        for place, char in enumerate(text, self.length + 1):
            if self.end is not None:
                break
            if self._quoted:
                self._quoted = self._escaped or char != '"'
                self._escaped = char == "\\" and not self._escaped
            elif char == '"':
                self._quoted = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                self.end = place if self._depth == 0 else None
        self.length += len(text)


def parsed(text: str) -> tuple[str, str] | None:
    """Name and arguments of a call that is complete."""
    try:
        value = json.loads(text)
        name, arguments = value["name"], value.get("arguments", value.get("parameters", {}))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return (name, json.dumps(arguments, ensure_ascii=False)) if isinstance(name, str) and name else None


def _string(quoted: str) -> str:
    try:
        return str(json.loads(quoted, strict=False))
    except ValueError:
        return ""
