"""Calls in an answer's text: found while it is written, and their arguments passed on as they come.

Three forms are known (:class:`ToolForm`). ``tagged``, as Hermes and Qwen write them, any number of times:
``<tool_call>\\n{"name": …, "arguments": {…}}\\n</tool_call>``. ``marked``, as Mistral does: ``[TOOL_CALLS]`` and a JSON
list of such objects, or ``[TOOL_CALLS]name[ARGS]{…}`` any number of times. ``bare``, as Llama 3 does: nothing but JSON
objects, ``{"name": …, "parameters": {…}}``, with ``;`` between them.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from llmos.openai.call_reader import Call, parsed

BEGIN, END = "<tool_call>", "</tool_call>"
MARK, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"


@dataclass(frozen=True, slots=True)
class ToolForm:
    """How a model writes calls. ``arguments`` is the name it has for them in JSON.

    ``shown`` are the control tokens that calls are made of, by their names: the text of an answer must show them.
    """

    kind: Literal["tagged", "marked", "bare"]
    arguments: str = "arguments"
    shown: tuple[tuple[str, int], ...] = ()
    named: bool = False
    """Of ``marked``: the name stands before the arguments, not in a list of objects."""


@dataclass(frozen=True, slots=True)
class CallDelta:
    """More of call ``number`` of an answer: first its ``id`` and ``name``, then its ``arguments``, which are JSON."""

    number: int
    arguments: str = ""
    name: str | None = None
    id: str | None = None

    @property
    def wire(self) -> dict[str, Any]:
        """As OpenAI writes it in a stream."""
        if self.name is None:
            return {"index": self.number, "function": {"arguments": self.arguments}}
        function = {"name": self.name, "arguments": self.arguments}
        return {"index": self.number, "id": self.id, "type": "function", "function": function}


def joined(deltas: Iterable[CallDelta]) -> list[CallDelta]:
    """Those of one call that follow one another as one."""
    found: list[CallDelta] = []
    for delta in deltas:
        if found and found[-1].number == delta.number and delta.name is None:
            last = found.pop()
            delta = CallDelta(last.number, last.arguments + delta.arguments, last.name, last.id)
        found.append(delta)
    return found


class ToolParser:
    """Finds calls in a text that comes in pieces. Those of a ``bare`` form must be of the tools ``names``.

    At most ``most`` calls are passed on; None is no limit.
    """

    def __init__(self, form: ToolForm, names: Collection[str] = (), most: int | None = None) -> None:
        self._form, self._names, self._most = form, names, most
        self._begin = BEGIN if form.kind == "tagged" else MARK
        self._held, self._blank = "", ""  # not looked at yet; blanks that belong to a call, if one follows
        self._call: Call | None = None
        self._listed = False
        self._any_text = False
        self._deltas: list[CallDelta] = []
        self.found = 0

    def push(self, text: str) -> tuple[str, list[CallDelta]]:
        """More text. Returns what is text for sure, and what is more of calls."""
        self._held += text
        shown = ""
        while True:
            before = len(self._held), self._call
            shown += self._look_for_call() if self._call is None else self._read_call(self._call)
            if (len(self._held), self._call) == before:
                return shown, self._taken()

    def finish(self) -> tuple[str, list[CallDelta]]:
        """The text has ended: what was held back."""
        call, self._call = self._call, None
        shown = self._blank + self._held
        if call is not None:
            shown = "" if self._complete(call) else self._blank + call.raw_with(self._held)
        self._held = self._blank = ""
        return (shown if shown.strip() or not self.found else ""), self._taken()

    def _taken(self) -> list[CallDelta]:
        deltas, self._deltas = self._deltas, []
        return [delta for delta in joined(deltas) if self._most is None or delta.number < self._most]

    def _look_for_call(self) -> str:
        """Text up to where a call begins, or may begin."""
        if self._form.kind == "bare":
            return self._look_for_bare()
        if self._listed and (follows := re.match(r"\s*([,\]])", self._held)):
            self._listed = follows[1] == ","
            self._held = self._held[follows.end() :]
            if self._listed:
                self._call = Call("", named=False)
            return ""
        at = self._held.find(self._begin)
        if at < 0:
            maybe = next((n for n in range(len(self._begin) - 1, 0, -1) if self._held.endswith(self._begin[:n])), 0)
            return self._text(len(self._held) - maybe)
        shown = self._text(at)
        self._held = self._held[len(self._begin) :]
        self._listed = False
        self._call = Call(self._begin, named=self._form.kind == "marked")
        return shown

    def _look_for_bare(self) -> str:
        """Calls are the first thing, or follow another call."""
        start = self._held.lstrip("; \n\t") if self.found else self._held.lstrip()
        if not start:
            return ""
        if self._any_text or not start.startswith("{"):
            return self._text(len(self._held))
        self._blank, self._held = self._held[: len(self._held) - len(start)], start
        self._call = Call("", named=False)
        return ""

    def _text(self, count: int) -> str:
        """The first ``count`` characters that are held: blanks at their end wait for what follows."""
        whole = self._blank + self._held[:count]
        shown = whole.rstrip()
        self._blank, self._held = whole[len(shown) :], self._held[count:]
        self._any_text = self._any_text or bool(shown)
        return shown

    def _read_call(self, call: Call) -> str:
        """More of the call; text, if it turns out to be none."""
        self._held = call.push(self._held)
        if call.listed:
            self._listed, self._call = True, Call(call.begin + call.raw, named=False)
            return ""
        self._pass_on(call)
        if call.wrong or (call.ended and not self._complete(call)):
            self._call, shown = None, self._blank + call.raw_with("")
            self._blank, self._any_text = "", True
            return shown
        if call.ended and self._closed(call):
            self._call, self._blank = None, ""
        return ""

    def _closed(self, call: Call) -> bool:
        """Whether what must follow a call has come; something else is text."""
        if self._form.kind != "tagged":
            return True
        rest = self._held.lstrip()
        if END.startswith(rest) and rest != END:
            return False
        self._held = rest.removeprefix(END)
        return True

    def _pass_on(self, call: Call) -> None:
        if not call.name or (self._form.kind == "bare" and call.name not in self._names):
            return
        if not call.begun:
            call.begun, call.number = True, self.found
            self.found += 1
            self._deltas.append(CallDelta(call.number, "", call.name, _new_id()))
        if more := call.take():
            self._deltas.append(CallDelta(call.number, more))

    def _complete(self, call: Call) -> bool:
        """Whether it is a call: one whose parts come in another order is known only now."""
        if not call.begun and (whole := parsed(call.raw)):
            name, arguments = whole
            if self._form.kind != "bare" or name in self._names:
                call.begun, call.number = True, self.found
                self.found += 1
                self._deltas.append(CallDelta(call.number, arguments, name, _new_id()))
        return call.begun


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex}"
