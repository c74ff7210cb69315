"""The benchmark of the front door: its load, its mock engine, and what is made of the samples."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from importlib import import_module

import httpx
import pytest

from benchmarks.frontdoor import __main__ as frontdoor
from benchmarks.frontdoor import mock, ours, rows, tpot_row, wake_row
from benchmarks.frontdoor.client import Load, LoadError, Sample, run
from benchmarks.frontdoor.contenders import BARE, ECHO, OURS, PROXY, SERVE, SERVE_TUNED
from benchmarks.frontdoor.measure import (
    CHUNKS_16,
    SHORT,
    TTFT_1,
    WORKLOADS,
    Group,
    answer_rate,
    event_rate,
    ttft_ms,
)
from benchmarks.rows import Options, Unmeasured
from llmos.front.caller import HEADER, place, sign
from llmos.front.fleet import Fleet
from llmos.openai.caller import Caller

NAMES = [
    *("ttft_p50_ms", "ttft_p99_ms", "tpot_ms", "chunks_per_s", "short_rps"),
    *("route_hit", "route_imbalance", "wake_s", "embed_per_s"),
]
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
KEY, SHARED = "sk-of-the-test", b"the door's"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


EVENT, END = chunk(b'data: {"n": 1}\n\n'), chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


@asynccontextmanager
async def answering(*pieces: bytes, pause_s: float = 0.0) -> AsyncIterator[int]:
    """A server that answers every request with ``pieces``, each a write of its own; yields its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)

    async def until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await answer(reader, writer)
        writer.close()

    connections: list[asyncio.Task[None] | None] = []
    server = await asyncio.start_server(until_closed, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.gather(*filter(None, connections))


def load(port: int, **fields: object) -> Load:
    return Load(**{"port": port, "path": "/", "key": KEY, "body": {}, "streams": 2, "seconds": 0.2, **fields})


def test_every_row_of_the_front_door_is_there() -> None:
    assert [row.name for row in frontdoor.ROWS] == NAMES
    for row in frontdoor.ROWS:
        module, function = row.run.split(":")
        if module.rpartition(".")[2] in ("rows", "tpot_row", "wake_row"):
            assert callable(getattr(import_module(module), function)), row.run


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 19, 1000])
async def test_events_are_counted_however_they_are_cut(cut: int) -> None:
    whole = STREAM + EVENT * 3 + END
    async with answering(*(whole[at : at + cut] for at in range(0, len(whole), cut))) as port:
        sample = await run(load(port, events=3, once=True))
    assert (sample.events, sample.answers) == (2 * 4, 2)  # the end is an event too


async def test_first_and_last_event_are_timed_from_sending() -> None:
    async with answering(STREAM, EVENT, EVENT, END, pause_s=0.02) as port:
        sample = await run(load(port, streams=1, events=2, seconds=0.5))
    assert sample.answers == len(sample.first_s) == len(sample.last_s) > 2
    for first_s, last_s in zip(sample.first_s, sample.last_s, strict=True):
        assert 0.02 <= first_s < last_s and last_s >= 0.06  # what was slept since the request was there


async def test_an_answer_with_a_length_ends_with_it() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{", b" ", b" }", pause_s=0.001) as port:
        sample = await run(load(port))
    assert sample.answers > 2 and sample.events == 0


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (STREAM + EVENT + END, "expected 3 events and an end, found 2"),
        (STREAM + EVENT * 3 + b"0\r\n\r\n", "expected 3 events and an end, found 3"),
        (b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\n\r\nlate", "429 .*late"),
    ],
)
async def test_a_wrong_answer_is_no_figure(answer: bytes, what: str) -> None:
    async with answering(answer) as port:
        with pytest.raises(LoadError, match=what):
            await run(load(port, events=3))


@pytest.fixture
async def engine(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """The mock engine behind the application of replicas."""
    monkeypatch.setenv("LLMOS_API_KEY", KEY)
    monkeypatch.setenv(mock.ENV_DOOR, SHARED.decode())
    transport = httpx.ASGITransport(mock.application())
    async with httpx.AsyncClient(transport=transport, base_url="http://mock:1") as client:
        yield client


async def test_the_mock_engine_streams_as_many_tokens_as_are_asked_for(engine: httpx.AsyncClient) -> None:
    for workload in (CHUNKS_16, TTFT_1):
        answer = await engine.post(
            "/v1/chat/completions", json=workload.body, headers={"Authorization": f"Bearer {KEY}"}
        )
        *events, end, _ = answer.text.split("\n\n")
        assert end == "data: [DONE]"
        deltas = [
            json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events if event[0] != ":"
        ]
        assert sum(bool(delta.get("content")) for delta in deltas) == workload.tokens


async def test_the_mock_engine_lets_in_the_front_door_and_who_has_the_key(engine: httpx.AsyncClient) -> None:
    async def status(headers: dict[str, str]) -> int:
        return (await engine.post("/v1/chat/completions", json=SHORT.body, headers=headers)).status_code

    where = place(str(engine.base_url), "/v1/chat/completions")
    assert await status({HEADER: sign(Caller("key"), SHARED, where)}) == 200
    assert await status({HEADER: sign(Caller("key"), b"another's", where), "Authorization": f"Bearer {KEY}"}) == 401
    assert await status({"Authorization": "Bearer other"}) == await status({}) == 401
    assert (await engine.post("/echo", content=b"anything")).content == b"anything"


def test_ours_knows_a_replica_of_every_service() -> None:
    fleet = Fleet(None)  # type: ignore[arg-type]  # it is told, and asks nobody
    fleet.learn(ours.table(["http://127.0.0.1:1"]))
    assert {fleet.fit(name, set())[0].url for name in mock.PACES_S} == {"http://127.0.0.1:1"}


def sample(events: int, answers: int, first_ms: float = 1.0) -> Sample:
    return Sample(1.0, events, answers, [first_ms / 1000] * 10, [1.0] * 10)


def group(*contenders: str, failed: Sequence[str] = (), slower: float = 1.0) -> Group:
    """Three rounds; the contenders get slower in their order, and the last round is bad for all."""
    samples = {
        name: {
            one.name: [sample(int(60_000 / at), int(600 / at), at * ms) for ms in (1.0, 1.0, 9.0)] for one in WORKLOADS
        }
        for at, name in enumerate(contenders, 1)
    }
    return Group(samples, {(name, one.name): f"{name} broke" for name in failed for one in WORKLOADS})


def test_differences_and_ratios_are_medians_over_the_rounds() -> None:
    one = group(BARE, OURS)
    assert one.added(OURS, TTFT_1, ttft_ms(50)) == pytest.approx(1.0)
    assert one.ratio(OURS, BARE, CHUNKS_16, event_rate) == one.ratio(OURS, BARE, SHORT, answer_rate) == 0.5
    with pytest.raises(Unmeasured, match="LiteLLM: LiteLLM broke"):
        group(BARE, OURS, failed=[PROXY]).median(PROXY, SHORT, answer_rate)
    with pytest.raises(Unmeasured, match="only 0 answers"):
        ttft_ms(99)(Sample(1.0))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def set_groups(alone: Group, failed: Sequence[str] = ()) -> None:
        groups = {
            False: group(BARE, OURS, SERVE, failed=failed),
            True: group(BARE, OURS, SERVE_TUNED, failed=failed),
        }
        monkeypatch.setattr(rows, "alone", lambda _: alone)
        monkeypatch.setitem(rows._PEERS, PROXY, lambda _: alone)
        monkeypatch.setattr(rows, "beside_serve", lambda _, tuned: groups[tuned])

    return set_groups


def test_the_rows_name_everybody(measured: Callable[..., None]) -> None:
    measured(group(BARE, OURS, ECHO, *["nobody"] * 8, PROXY))
    met = {
        row.name: row.measure(Options()) for row in frontdoor.ROWS if row.run.startswith("benchmarks.frontdoor.rows")
    }
    assert {name: row["met"] for name, row in met.items()} == dict.fromkeys(met, True)
    assert met["ttft_p50_ms"]["value"] == met["ttft_p99_ms"]["value"] == 1.0
    assert met["chunks_per_s"]["value"] == 30_000 and met["chunks_per_s"]["peer_value"] == 20_000
    assert met["short_rps"]["also"]["of_echo"] == 1.5
    for row in met.values():
        assert {"bare", "litellm", "serve", "serve_tuned"} <= row["also"].keys()
    assert {"ratio_c64", "serve_c64"} <= met["chunks_per_s"]["also"].keys()


def test_a_peer_that_is_missing_is_told_and_takes_no_figure_of_ours_with_it(measured: Callable[..., None]) -> None:
    measured(group(BARE, OURS, ECHO, failed=[PROXY]), failed=[SERVE_TUNED])
    short, chunks = rows.short_rps(Options()), rows.chunks_per_s(Options())
    assert (short.value, short.ratio, chunks.value, chunks.ratio) == (300, None, 30_000, None)
    assert "LiteLLM broke" in short.why and "Ray Serve tuned broke" in chunks.why


@pytest.mark.parametrize("row", [tpot_row.tpot_ms, wake_row.wake_s, rows.short_rps])
def test_rows_of_the_cpu_say_so(row: Callable[[Options], object]) -> None:
    with pytest.raises(Unmeasured, match="run without DEVICE"):
        row(Options(device="cuda"))
