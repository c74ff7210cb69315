"""Tools a model may call: what is asked, the grammar of a call, and the calls in an answer's text.

Two forms of calls are known. Tagged, as Hermes and Qwen write them, any number of times:
``<tool_call>\\n{"name": …, "arguments": {…}}\\n</tool_call>``. Bare, as Llama 3 does: one JSON object instead of text.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from llmos.openai.structure import Constraint
from llmos.openai.wire import Hint, Wire

BEGIN, END = "<tool_call>", "</tool_call>"
MAX_TOOLS, MAX_CALLS = 128, 16
NAME = r"^[a-zA-Z0-9_-]{1,64}$"

_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How llguidance is to write JSON: as Python does, of which models have seen most calls."""


class Function(Wire):
    """A function's name, what it is for, and the JSON schema of its arguments."""

    name: str = Field(pattern=NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Hint


class Tool(Wire):
    """Something the model may call."""

    type: Literal["function"]
    function: Function

    @property
    def plain(self) -> dict[str, Any]:
        """What chat templates know."""
        return self.model_dump(exclude={"function": {"strict"}}, exclude_none=True)


class Called(Wire):
    """The function of an earlier call; ``arguments`` is JSON."""

    name: str
    arguments: str


class EarlierCall(Wire):
    """A call in an earlier turn."""

    id: str
    type: Literal["function"] = "function"
    function: Called

    @property
    def plain(self) -> dict[str, Any]:
        """What chat templates know: arguments as values, where they are JSON."""
        try:
            arguments = json.loads(self.function.arguments)
        except ValueError:
            arguments = self.function.arguments
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call in an answer; ``arguments`` is JSON."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex}")

    @property
    def wire(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def calls(tools: Sequence[Tool], *, tagged: bool, parallel: bool, arguments: str) -> Constraint:
    """The grammar of calls of ``tools``. ``arguments`` is the name that bare calls have for them."""
    names = [tool.function.name for tool in tools]
    key = "arguments" if tagged else arguments
    schema = {
        "x-guidance": _STYLE,
        "$defs": {tool.function.name: _rooted(tool.function) for tool in tools},
        "anyOf": [_call(name, key) for name in names],
    }
    if not tagged:
        return Constraint("json_schema", json.dumps(schema), "tools")
    more = f' ("\\n" call){{0,{MAX_CALLS - 1}}}' if parallel else ""
    call = f'call: "{BEGIN}\\n" object "\\n{END}"'
    return Constraint("lark", f"start: call{more}\n{call}\nobject: %json {json.dumps(schema)}", "tools")


class ToolParser:
    """Finds calls in a text that comes in pieces; bare calls only in the whole text."""

    def __init__(self, *, tagged: bool) -> None:
        self._tagged, self._held, self._inside = tagged, "", not tagged
        self.found = 0

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """More text. Returns what is text for sure, and the calls that are complete."""
        self._held += text
        if not self._tagged:
            return "", []
        shown = ""
        found: list[ToolCall] = []
        while (at := self._held.find(END if self._inside else BEGIN)) >= 0:
            before, self._held = self._held[:at], self._held[at + len(END if self._inside else BEGIN) :]
            if self._inside:
                shown, found = _add(shown, found, before, BEGIN + before + END)
            else:
                shown += before.rstrip()  # blanks before a call belong to it
            self._inside = not self._inside
        if not self._inside:
            maybe = next((n for n in range(len(BEGIN) - 1, 0, -1) if self._held.endswith(BEGIN[:n])), 0)
            cut = len(self._held[: len(self._held) - maybe].rstrip())
            shown, self._held = shown + self._held[:cut], self._held[cut:]
        self.found += len(found)
        return shown, found

    def finish(self) -> tuple[str, list[ToolCall]]:
        """The text has ended: what was held back."""
        held, self._held = self._held, ""
        if not self._inside:
            return (held if held.strip() or not self.found else ""), []
        shown, found = _add("", [], held, (BEGIN if self._tagged else "") + held)
        self.found += len(found)
        return shown, found


def _add(shown: str, found: list[ToolCall], text: str, raw: str) -> tuple[str, list[ToolCall]]:
    """``found`` and the call that ``text`` is, or ``shown`` and ``raw``."""
    call = _parsed(text)
    return (shown + raw, found) if call is None else (shown, [*found, call])


def _parsed(text: str) -> ToolCall | None:
    try:
        value = json.loads(text)
        name, arguments = value["name"], value.get("arguments", value.get("parameters", {}))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False)) if isinstance(name, str) else None


def _call(name: str, arguments: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, arguments: {"$ref": f"#/$defs/{name}"}},
        "required": ["name", arguments],
        "additionalProperties": False,
    }


def _rooted(function: Function) -> dict[str, Any]:
    """The schema of the arguments, with its references as they are under ``#/$defs/NAME``."""
    none = {"type": "object", "properties": {}, "additionalProperties": False}
    rooted: dict[str, Any] = _moved(function.parameters or none, f"#/$defs/{function.name}")
    return rooted


def _moved(value: Any, root: str) -> Any:
    if isinstance(value, Mapping):
        return {
            key: root + part[1:] if key == "$ref" and isinstance(part, str) and part[:1] == "#" else _moved(part, root)
            for key, part in value.items()
        }
    return [_moved(part, root) for part in value] if isinstance(value, list) else value
