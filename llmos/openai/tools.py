"""Tools a model may call: what is asked, the grammar of a call, and the calls in an answer's text.

Two forms of calls are known. Tagged, as Hermes and Qwen write them, any number of times:
``<tool_call>\\n{"name": …, "arguments": {…}}\\n</tool_call>``. Bare, as Llama 3 does: one JSON object instead of text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from llmos.openai.calls import ARGS, BEGIN, END, MARK, ToolForm
from llmos.openai.structure import Constraint
from llmos.openai.wire import Hint, Wire

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


def calls(tools: Sequence[Tool], form: ToolForm, *, parallel: bool) -> Constraint:
    """The grammar of calls of ``tools``, at least one, in the ``form`` of the model."""
    names, most = [tool.function.name for tool in tools], MAX_CALLS if parallel else 1
    definitions = {tool.function.name: _rooted(tool.function) for tool in tools}
    one = {"x-guidance": _STYLE, "$defs": definitions, "anyOf": [_call(name, form.arguments) for name in names]}
    if form.kind == "bare":
        return Constraint("json_schema", json.dumps(one), "tools")
    shown = {name: f"<[{token}]>" for name, token in form.shown}
    begin, end, args = (shown.get(text, json.dumps(text)) for text in (BEGIN, END, ARGS))
    more = f' ("\\n" call){{0,{MAX_CALLS - 1}}}' if parallel else ""
    if form.kind == "tagged":
        call = f'call: {begin} "\\n" object "\\n" {end}'
        return Constraint("lark", f"start: call{more}\n{call}\nobject: %json {json.dumps(one)}", "tools")
    mark = shown.get(MARK, json.dumps(MARK))
    if form.named:
        rules = [f"call_{i}: %json {json.dumps(_alone(name, definitions))}" for i, name in enumerate(names)]
        ways = " | ".join(f"{json.dumps(name)} {args} call_{i}" for i, name in enumerate(names))
        return Constraint("lark", "\n".join([f"start: call{{1,{most}}}", f"call: {mark} ({ways})", *rules]), "tools")
    several = {key: value for key, value in one.items() if key == "anyOf"}
    listed = {"x-guidance": _STYLE, "$defs": definitions, "type": "array", "items": several, "minItems": 1}
    schema = json.dumps({**listed, "maxItems": most})
    return Constraint("lark", f"start: {mark} list\nlist: %json {schema}", "tools")


def _alone(name: str, definitions: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of the arguments of function ``name``."""
    return {"x-guidance": _STYLE, "$defs": definitions, "$ref": f"#/$defs/{name}"}


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
