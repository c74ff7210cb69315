"""Stored chat completions: kept for ``store: true`` where the tenant has storage, and read, labelled and removed later.

Who keeps them is behind :class:`CompletionPort`: the control module's store, or a file of the server without Ray.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Body, Path, Query, Request

from llmos.errors import LlmosError, UsageError
from llmos.openai.caller import Caller
from llmos.openai.http import caller_of
from llmos.openai.request import Metadata
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.openai.sse import events
from llmos.openai.wire import Wire

PAGE, MAX_PAGE = 20, 100
MAX_STORED_BYTES = 2**20
MAX_LATE_BYTES = 64 * 2**20
"""Of answers that wait to be stored while nobody takes them; others are not."""
MAX_TENANTS = 4096
HOLD_S, AWAY_S = 1.0, 5.0

Id = Annotated[str, Path(max_length=200)]
Limit = Annotated[int, Query(ge=0, le=MAX_PAGE)]
After = Annotated[str | None, Query(max_length=200)]
Order = Annotated[Literal["asc", "desc"], Query()]

_log = logging.getLogger(__name__)


class CompletionPort(Protocol):
    """Whoever keeps completions. Nobody sees another tenant's."""

    async def completions(self, verb: str, tenant: str, **arguments: Any) -> Any:
        """The answer of a verb of :class:`llmos.control.store.completions.Completions`. Raises leaves of LlmosError."""
        ...


class Nowhere:
    """A :class:`CompletionPort` of a server without storage."""

    async def completions(self, verb: str, tenant: str, **arguments: Any) -> Any:
        """``keeps`` is false, and nothing can be found."""
        if verb == "keeps":
            return False
        raise UsageError("this server stores no completions", hint="Start it with a place to store them.")


class UpdateRequest(Wire):
    """What can be changed of a stored completion."""

    metadata: Metadata | None


class Keeper:
    """Hands answers to ``port``, which takes milliseconds. While it is away no answer waits for it longer than HOLD_S,
    and not even that soon again; what it did not take by then it is given beside."""

    def __init__(self, port: CompletionPort) -> None:
        self._port = port
        self._keeps: OrderedDict[str, bool] = OrderedDict()  # what was said last of each tenant
        self._away_until_s = 0.0
        self._late: dict[asyncio.Task[None], int] = {}  # what is being kept, and how many bytes that are

    async def wanted(self, request: CompletionRequest | ChatRequest, caller: Caller) -> bool:
        """Whether the answer is to be kept: it is asked for, and the tenant has storage. While nobody can be asked
        about that, as it was before."""
        if not (isinstance(request, ChatRequest) and request.store):
            return False
        if time.monotonic() >= self._away_until_s:
            try:
                async with asyncio.timeout(HOLD_S):
                    self._keeps[caller.tenant] = bool(await self._port.completions("keeps", caller.tenant))
                if len(self._keeps) > MAX_TENANTS:
                    self._keeps.popitem(last=False)
            except (LlmosError, TimeoutError) as error:
                self._away_until_s = time.monotonic() + AWAY_S
                _log.warning("whether %s has storage cannot be asked: %s", caller.tenant, error)
        return self._keeps.get(caller.tenant, False)

    async def keep(self, request: ChatRequest, caller: Caller, answer: bytes) -> None:
        """Keep ``answer``, all of it. What cannot be kept is logged: the answer itself is complete and goes out."""
        if len(answer) > MAX_STORED_BYTES:
            return _log.warning("the answer of %s is not stored: it has %d bytes", caller.request_id, len(answer))
        size = len(answer) + sum(len(message.content or "") for message in request.messages)
        if sum(self._late.values()) + size > MAX_LATE_BYTES:
            return _log.warning("the answer of %s is not stored: too many wait to be", caller.request_id)
        task = asyncio.create_task(self._add(request, caller, answer))
        self._late[task] = size
        task.add_done_callback(self._late.pop)
        await asyncio.wait([task], timeout=HOLD_S)

    async def _add(self, request: ChatRequest, caller: Caller, answer: bytes) -> None:
        found = await asyncio.to_thread(_read, answer, request.stream)
        found |= {"metadata": request.metadata or {}, "request_id": caller.request_id}
        messages = [{"role": m.role, "content": m.content, "name": m.name} for m in request.messages]
        try:
            await self._port.completions("add", caller.tenant, completion=found, messages=messages)
        except LlmosError as error:
            _log.warning("completion %s is not stored: %s", found["id"], error)


def _read(answer: bytes, stream: bool | None) -> dict[str, Any]:
    """What a whole answer says."""
    found: dict[str, Any] = joined(events(answer)) if stream else json.loads(answer)
    return found


def joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole answer that the ``chunks`` of a stream are parts of."""
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            _join(choices, choice)
    head = {name: chunks[0][name] for name in ("id", "created", "model")}
    whole = {**head, "object": "chat.completion", "choices": [choices[index] for index in sorted(choices)]}
    return whole if usage is None else {**whole, "usage": usage}


def _join(choices: dict[int, dict[str, Any]], part: Mapping[str, Any]) -> None:
    empty = {"role": "assistant", "content": None, "refusal": None}
    choice = choices.setdefault(
        part["index"], {"index": part["index"], "message": empty, "logprobs": None, "finish_reason": "stop"}
    )
    message, delta = choice["message"], part["delta"]
    if delta.get("content"):
        message["content"] = (message["content"] or "") + delta["content"]
    for call in delta.get("tool_calls", ()):
        called = message.setdefault("tool_calls", [])
        if call["index"] == len(called):
            called.append({"id": call["id"], "type": "function", "function": {"name": "", "arguments": ""}})
        for name, more in call["function"].items():
            called[call["index"]]["function"][name] += more
    if part["logprobs"]:
        before = choice["logprobs"] or {"content": [], "refusal": None}
        choice["logprobs"] = {**before, "content": before["content"] + part["logprobs"]["content"]}
    choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]


def add_stored_routes(router: APIRouter, port: CompletionPort) -> None:
    """``/chat/completions`` by id, and their list."""
    base = "/chat/completions"

    @router.get(base, summary="Stored chat completions")
    async def list_completions(
        request: Request,
        after: After = None,
        limit: Limit = PAGE,
        order: Order = "asc",
        model: Annotated[str | None, Query(max_length=200)] = None,
    ) -> dict[str, Any]:
        asked = {"after": after, "limit": limit, "order": order, "model": model, "metadata": _labels(request)}
        found = await port.completions("list", caller_of(request).tenant, **asked)
        return _page(found["data"], found["has_more"])

    @router.get(f"{base}/{{completion_id}}", summary="A stored chat completion")
    async def get_completion(request: Request, completion_id: Id) -> Any:
        return await port.completions("get", caller_of(request).tenant, id=completion_id)

    @router.post(f"{base}/{{completion_id}}", summary="Label a stored chat completion anew")
    async def update_completion(request: Request, completion_id: Id, body: Annotated[UpdateRequest, Body()]) -> Any:
        asked = {"id": completion_id, "metadata": body.metadata or {}}
        return await port.completions("update", caller_of(request).tenant, **asked)

    @router.delete(f"{base}/{{completion_id}}", summary="Remove a stored chat completion")
    async def delete_completion(request: Request, completion_id: Id) -> Any:
        await port.completions("remove", caller_of(request).tenant, id=completion_id)
        return {"object": "chat.completion.deleted", "id": completion_id, "deleted": True}

    _add_message_route(router, port)


def _add_message_route(router: APIRouter, port: CompletionPort) -> None:
    @router.get("/chat/completions/{completion_id}/messages", summary="What a stored chat completion answered")
    async def list_messages(
        request: Request, completion_id: Id, after: After = None, limit: Limit = PAGE, order: Order = "asc"
    ) -> dict[str, Any]:
        found = await port.completions("messages", caller_of(request).tenant, id=completion_id)
        numbered = [
            {"id": f"{completion_id}-{number}", "refusal": None, "content_parts": None, **message}
            for number, message in enumerate(found)
        ][:: 1 if order == "asc" else -1]
        ids = [message["id"] for message in numbered]
        if after is not None and after not in ids:
            raise UsageError(f"`after` is no message of `{completion_id}`", param="after")
        rest = numbered[0 if after is None else ids.index(after) + 1 :]
        return _page(rest[:limit], len(rest) > limit)


def _page(page: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    first, last = (page[0]["id"], page[-1]["id"]) if page else ("", "")
    return {"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": has_more}


def _labels(request: Request) -> dict[str, str]:
    """``metadata[key]=value`` of the query."""
    return {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
