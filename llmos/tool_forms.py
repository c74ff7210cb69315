"""How a served model writes calls of tools, as its chat template shows: what the engine is asked, and what it says."""

from __future__ import annotations

from llmos.models import Tokenizer
from llmos.openai.calls import ARGS, BEGIN, CALL_ID, END, MARK, ToolForm, ToolParser
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.openai.structure import Constraint
from llmos.openai.tools import calls


def form_of(tokenizer: Tokenizer) -> ToolForm:
    """The form that the chat template of ``tokenizer`` writes; Llama 3's, if it shows none."""
    template = tokenizer.chat_template
    controls = {tokenizer.spelling(token).decode(errors="replace"): token for token in tokenizer.control_ids}
    shown = tuple((name, controls[name]) for name in (BEGIN, END, MARK, ARGS, CALL_ID) if name in controls)
    if BEGIN in template:
        return ToolForm("tagged", shown=shown)
    if MARK in template:
        return ToolForm("marked", shown=shown, named=ARGS in template)
    return ToolForm("bare", "parameters" if '"parameters"' in template else "arguments", shown)


class ToolCalling:
    """What requests with tools want of a model that writes calls in one ``form``."""

    def __init__(self, form: ToolForm) -> None:
        self._form = form

    def constraint(self, request: CompletionRequest | ChatRequest) -> Constraint | None:
        """The grammar of the answers to ``request``: that of calls, if one is required."""
        if isinstance(request, ChatRequest) and request.required:
            return calls(request.required, self._form, parallel=request.parallel_tool_calls is not False)
        return request.constraint

    def parser(self, request: CompletionRequest | ChatRequest) -> ToolParser | None:
        """What finds the calls in an answer, if there may be some."""
        if not isinstance(request, ChatRequest) or not request.offered:
            return None
        names = [tool.function.name for tool in request.offered]
        return ToolParser(self._form, names, 1 if request.parallel_tool_calls is False else None)

    def shown(self, request: CompletionRequest | ChatRequest) -> frozenset[int]:
        """The control tokens that the text of an answer must show, for calls to be found."""
        offered = isinstance(request, ChatRequest) and bool(request.offered)
        return frozenset(token for _, token in self._form.shown) if offered else frozenset()

    def stops(self, request: CompletionRequest | ChatRequest) -> tuple[str, ...]:
        """Where the text of an answer ends: after one call, if that is all there may be."""
        if not isinstance(request, ChatRequest) or request.parallel_tool_calls is not False or request.required:
            return request.stops
        return (*request.stops, END) if request.offered and self._form.kind == "tagged" else request.stops
