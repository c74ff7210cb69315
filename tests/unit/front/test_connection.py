"""The HTTP client to replicas, against servers that say what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from llmos.front import connection
from llmos.front.connection import MAX_UNREAD, Connections, request

Say = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n3\r\nabc\r\n0\r\n\r\n"


@asynccontextmanager
async def server(say: Say) -> AsyncIterator[tuple[str, Connections]]:
    """The address of one that has ``say`` answer each request, and connections to it."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(asyncio.IncompleteReadError, OSError):
            while await reader.readuntil(b"\r\n\r\nbody"):
                await say(reader, writer)
                await writer.drain()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    connections = Connections()
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", connections
    finally:
        listening.close()
        connections.close()
        for writer in writers:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def saying(*answers: bytes) -> Say:
    """One after the other, whole."""
    left = list(answers)

    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(left.pop(0))

    return say


async def ask(connections: Connections, url: str) -> tuple[int, bytes]:
    one = await connections.take(url)
    try:
        await one.ask(request(url, "/x", b"body", {"a": "b"}))
        return one.status, await one.read_all()
    finally:
        connections.give(url, one)


def kept(connections: Connections) -> int:
    return sum(map(len, connections._kept.values()))


async def test_an_answer_is_read_and_its_connection_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\n"
    plain = b"HTTP/1.1 429 Too Many\r\nContent-Length: 2\r\n\r\nno"
    async with server(saying(CHUNKED, plain, early + CHUNKED)) as (url, connections):
        assert await ask(connections, url) == (200, b"abc")
        assert await ask(connections, url) == (429, b"no")
        assert await ask(connections, url) == (200, b"abc") and kept(connections) == 1
        connections.expire()
        assert kept(connections) == 1
        monkeypatch.setattr(connection, "IDLE_S", -1.0)
        connections.expire()
        assert kept(connections) == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",  # says so
        CHUNKED + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",  # nobody asked
    ],
)
async def test_a_connection_that_cannot_be_used_again_is_not_kept(answer: bytes) -> None:
    async with server(saying(answer)) as (url, connections):
        assert (await ask(connections, url))[1] == b"abc"
        assert kept(connections) == 0


async def test_one_that_was_closed_meanwhile_is_not_taken() -> None:
    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        await writer.drain()
        writer.close()

    async with server(say) as (url, connections):
        for _ in range(3):
            assert await ask(connections, url) == (200, b"abc")
            await asyncio.sleep(0.05)  # the end has arrived


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", b"SSH-2.0 hello\r\n\r\n"])
async def test_what_is_no_whole_answer_is_an_error(answer: bytes) -> None:
    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    async with server(say) as (url, connections):
        with pytest.raises(OSError, match="closed|reset|HTTP"):
            await ask(connections, url)


async def test_nobody_there_is_an_error() -> None:
    async with server(saying()) as (url, connections):
        nobody = url
    with pytest.raises(ConnectionRefusedError):
        await connections.take(nobody)


async def test_a_slow_client_makes_the_replica_wait() -> None:
    sent, size = 0, 64 * 2**20

    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(bytes(2**16))
            sent += 2**16
            await writer.drain()

    async with server(say) as (url, connections):
        one = await connections.take(url)
        await one.ask(request(url, "/x", b"body", {}))
        await asyncio.sleep(0.2)
        assert one._size < MAX_UNREAD + 2**20 and sent < size  # what fits into the system's buffers is sent
        assert len(await one.read_all()) == size
        connections.give(url, one)


async def test_who_waits_for_one_that_is_given_up_is_told() -> None:
    async with server(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")) as (url, connections):
        one = await connections.take(url)
        await one.ask(request(url, "/x", b"body", {}))
        reading = asyncio.create_task(one.read())
        await asyncio.sleep(0)
        one.abort()
        with pytest.raises(ConnectionAbortedError, match="given up"):
            await reading


@pytest.mark.parametrize("kept", [None, "certificate.pem"])
async def test_nothing_is_sent_where_a_certificate_is_needed_and_there_is_none(
    tmp_path: Path, kept: str | None
) -> None:
    async with server(saying()) as (url, _):
        connections = Connections(tmp_path / kept if kept else None)
        with pytest.raises(OSError, match="no certificate to know a replica by"):
            await connections.take(url.replace("http:", "https:"))
