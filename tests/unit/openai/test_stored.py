"""Stored completions: kept when that is asked for and the tenant has storage, and only its own can see them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from llmos.control.store import completions as module
from llmos.control.store.completions import MAX_BYTES, PAGE_BYTES, Completions
from llmos.control.store.database import Database
from llmos.errors import CapacityError, ClusterError, NotFoundError
from llmos.openai import stored
from llmos.openai.caller import Caller
from llmos.openai.calls import CallDelta
from llmos.openai.replies import ChatReply, Piece, Token, usage
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.openai.server import create_app
from llmos.openai.sse import events
from llmos.openai.stored import joined
from llmos.serving import StoredHere
from tests.unit.openai.test_server import Scripted

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}], "store": True}
PIECES = (
    Piece("Wal", (Token(b"Wal", -0.5),)),
    Piece("k", (Token(b"k", -1.5),), calls=(CallDelta(0, "", "f", "call_1"), CallDelta(0, '{"a":'))),
    Piece("", None, "tool_calls", calls=(CallDelta(0, " 1}"), CallDelta(1, "{}", "g", "call_2"))),
)


class Talking(Scripted):
    """Says the same to everybody."""

    async def answer(self, request: CompletionRequest | ChatRequest, caller: Caller) -> Any:
        assert isinstance(request, ChatRequest)
        reply = ChatReply(request)
        if request.stream:
            for piece in PIECES:
                yield reply.chunk(0, piece)
            yield reply.end(usage(3, 2))
        else:
            yield reply.whole([Piece("Walk", None, "stop")], usage(3, 2))


class Away:
    """Storage that is there but cannot be reached when it is needed."""

    async def completions(self, verb: str, tenant: str, **arguments: Any) -> Any:
        if verb == "keeps":
            return True
        raise ClusterError("away")


async def _tenant(request: Request, _scope: str) -> Caller:
    return Caller("key", request.headers["Authorization"].removeprefix("Bearer "), "req_9")


@pytest.fixture
def completions(tmp_path: Path) -> Iterator[Completions]:
    database = Database(tmp_path / "store.db")
    yield Completions(database, kept=3)
    database.close()


@asynccontextmanager
async def _client(app: FastAPI, tenant: str = "red") -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {tenant}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test/v1", headers=headers) as one:
        yield one


async def test_what_is_stored_can_be_read_labelled_and_removed_by_its_tenant(completions: Completions) -> None:
    app = create_app(Talking([]), _tenant, stored=StoredHere(completions))
    async with _client(app) as red, _client(app, "blue") as blue:
        asked = {**CHAT, "metadata": {"a": "1"}}
        made = await red.post("/chat/completions", json=asked)
        assert "llmos-ignored-params" not in made.headers
        address = f"/chat/completions/{made.json()['id']}"
        found = (await red.get(address)).json()
        assert found == {**made.json(), "metadata": {"a": "1"}, "request_id": "req_9"}
        (message,) = (await red.get(f"{address}/messages")).json()["data"]
        assert (message["id"], message["role"], message["content"]) == (f"{found['id']}-0", "user", "x")
        changed = (await red.post(address, json={"metadata": {"b": "2"}})).json()
        assert changed["metadata"] == {"b": "2"} == (await red.get(address)).json()["metadata"]
        for method, path in (("GET", address), ("POST", address), ("DELETE", address), ("GET", f"{address}/messages")):
            body = {"metadata": {}} if method == "POST" else None
            answer = await blue.request(method, path, json=body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (404, "completion_id")
        assert (await blue.get("/chat/completions")).json()["data"] == []
        assert (await red.delete(address)).json() == {
            **{"object": "chat.completion.deleted", "id": found["id"], "deleted": True}
        }
        assert (await red.get(address)).status_code == (await red.delete(address)).status_code == 404


async def test_a_stream_is_stored_as_the_answer_that_it_makes(completions: Completions) -> None:
    app = create_app(Talking([]), _tenant, stored=StoredHere(completions))
    async with _client(app) as red:
        asked = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
        chunks = events((await red.post("/chat/completions", json=asked)).content)
        (kept,) = (await red.get("/chat/completions")).json()["data"]
    assert (kept["id"], kept["object"]) == (chunks[0]["id"], "chat.completion") and kept["usage"]["total_tokens"] == 5
    (choice,) = kept["choices"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "Walk"
    assert [token["logprob"] for token in choice["logprobs"]["content"]] == [-0.5, -1.5]
    assert choice["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_a_joined_stream_is_the_whole_answer() -> None:
    request = ChatRequest.model_validate({**CHAT, "stream": True, "stream_options": {"include_usage": True}})
    reply, plain = ChatReply(request), [Piece("a", None, "stop"), Piece("b", None, "length")]
    stream = b"".join(reply.chunk(index, piece) for index, piece in enumerate(plain)) + reply.end(usage(1, 2))
    (whole,) = events(b"data: " + reply.whole(plain, usage(1, 2)))
    assert joined(events(stream)) == whole


async def test_lists_have_pages_in_both_orders_and_filters(completions: Completions) -> None:
    for number, label in enumerate("abc"):
        completion = {"id": f"chatcmpl-{number}", "model": f"m{number % 2}", "metadata": {label: "1", "all": "x"}}
        completions.add("red", completion, [])
    app = create_app(Talking([]), _tenant, stored=StoredHere(completions))

    async def ids(**query: Any) -> list[str]:
        found = await red.get("/chat/completions", params=query)
        assert found.status_code == 200, found.text
        return [one["id"].removeprefix("chatcmpl-") for one in found.json()["data"]]

    async with _client(app) as red:
        assert await ids() == ["0", "1", "2"] and await ids(order="desc") == ["2", "1", "0"]
        assert await ids(limit=2) == ["0", "1"] and await ids(limit=2, after="chatcmpl-1") == ["2"]
        assert await ids(order="desc", after="chatcmpl-1") == ["0"] and await ids(limit=0) == []
        assert await ids(model="m1") == ["1"] and await ids(**{"metadata[b]": "1"}) == ["1"]
        assert await ids(**{"metadata[all]": "x", "metadata[c]": "1"}) == ["2"]
        assert await ids(**{'metadata["]': "1"}) == [] and await ids(after="chatcmpl-09") == ["1", "2"]
        page = (await red.get("/chat/completions", params={"limit": 1})).json()
        assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == (
            *("list", "chatcmpl-0", "chatcmpl-0", True),
        )
        for wrong in ({"limit": 101}, {"limit": -1}, {"order": "up"}):
            assert (await red.get("/chat/completions", params=wrong)).status_code == 400


def test_the_newest_are_kept(completions: Completions) -> None:
    for number in range(5):
        completions.add("red", {"id": f"c{number}", "model": "m"}, [])
        completions.add("blue", {"id": f"d{number}", "model": "m"}, [])
    assert [one["id"] for one in completions.list("red")["data"]] == ["c2", "c3", "c4"]
    with pytest.raises(CapacityError, match="is not stored"):
        completions.add("red", {"id": "large", "model": "m", "x": "x" * MAX_BYTES}, [])
    with pytest.raises(NotFoundError, match="no verb"):
        completions.call("_most", "red", {})


async def test_without_storage_the_parameter_is_named_and_nothing_is_kept(tmp_path: Path) -> None:
    database = Database(tmp_path / "store.db")
    for port in (None, StoredHere(Completions(database, kept=0)), StoredHere(Completions(database))):
        app = create_app(Talking([]), _tenant, stored=port)
        async with _client(app) as red:
            for stream in (False, True):
                made = await red.post("/chat/completions", json={**CHAT, "stream": stream})
                assert (made.status_code, made.headers["llmos-ignored-params"]) == (200, "store")
            listed = await red.get("/chat/completions")
            assert listed.status_code == 400 if port is None else listed.json()["data"] == []
    database.close()


async def test_an_answer_that_cannot_be_stored_goes_out_all_the_same() -> None:
    app = create_app(Talking([]), _tenant, stored=Away())
    async with _client(app) as red:
        made = await red.post("/chat/completions", json=CHAT)
        assert made.json()["choices"][0]["message"]["content"] == "Walk"
        assert (await red.get("/chat/completions")).status_code == 503


class Hanging:
    """Storage that says nothing while it is ``away``."""

    def __init__(self) -> None:
        self.back = asyncio.Event()
        self.added: list[str] = []

    async def completions(self, verb: str, tenant: str, **arguments: Any) -> Any:
        await self.back.wait()
        if verb == "add":
            self.added.append(arguments["completion"]["id"])
        return verb == "keeps"


async def test_no_answer_waits_long_for_storage_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"HOLD_S": 0.1, "AWAY_S": 0.2}.items():
        monkeypatch.setattr(stored, name, seconds)
    port, loop = Hanging(), asyncio.get_running_loop()
    async with _client(create_app(Talking([]), _tenant, stored=port)) as red:
        began_s = loop.time()
        unknown = [await red.post("/chat/completions", json=CHAT) for _ in range(20)]
        assert loop.time() - began_s < 1.5  # not each of them waits
        assert {one.headers["llmos-ignored-params"] for one in unknown} == {"store"}
        port.back.set()
        await asyncio.sleep(0.25)
        known = await red.post("/chat/completions", json=CHAT)
        assert port.added == [known.json()["id"]] and "llmos-ignored-params" not in known.headers
        port.back.clear()
        late = [await red.post("/chat/completions", json={**CHAT, "stream": stream}) for stream in (False, True)]
        assert all(one.status_code == 200 and "llmos-ignored-params" not in one.headers for one in late)
        assert port.added == [known.json()["id"]]
        port.back.set()
        await asyncio.sleep(0.1)
        assert len(port.added) == 3  # once it is back


async def test_what_waits_to_be_stored_is_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {"HOLD_S": 0.01, "MAX_LATE_BYTES": 1000}.items():
        monkeypatch.setattr(stored, name, value)
    port = Hanging()
    keeper = stored.Keeper(port)
    request, answer = ChatRequest.model_validate(CHAT), b'{"id": "c", "x": "%s"}' % (b"x" * 300)
    for _ in range(5):
        await keeper.keep(request, Caller("key", "red"), answer)
    port.back.set()
    await asyncio.sleep(0.1)
    assert len(port.added) == 3 and not keeper._late and caplog.text.count("too many wait") == 2


async def test_an_answer_that_is_too_large_to_store_is_not_read(
    completions: Completions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stored, "MAX_STORED_BYTES", 10)
    monkeypatch.setattr(stored, "_read", None)
    async with _client(create_app(Talking([]), _tenant, stored=StoredHere(completions))) as red:
        for stream in (False, True):
            assert (await red.post("/chat/completions", json={**CHAT, "stream": stream})).status_code == 200
        assert (await red.get("/chat/completions")).json()["data"] == []
    assert caplog.text.count("req_9 is not stored") == 2


def test_a_page_has_so_many_bytes_of_completions_and_what_was_asked_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(tmp_path / "store.db")
    completions = Completions(database, kept=9)
    for number in range(5):
        long = {"id": f"c{number}", "model": "m", "x": "x" * (PAGE_BYTES // 2 - 300)}
        completions.add("red", long, [{"role": "user", "content": "y" * 50}])
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE completions SET messages = 'no JSON'")
    page = completions.list("red")
    assert [one["id"] for one in page["data"]] == ["c0", "c1"] and page["has_more"]
    page = completions.list("red", after="c2")
    assert [one["id"] for one in page["data"]] == ["c3", "c4"] and not page["has_more"]
    monkeypatch.setattr(module, "PAGE_BYTES", 10)  # one alone is a page, whatever its size
    page = completions.list("red")
    assert [one["id"] for one in page["data"]] == ["c0"] and page["has_more"]
    database.close()
