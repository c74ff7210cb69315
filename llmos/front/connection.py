"""HTTP/1.1 to replicas, and no more of it than that takes: a request, an answer in pieces, connections that are kept.

A general client costs several times what the rest of the front door does for a short request. Bytes are parsed by
httptools, as the server's are.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import httptools

CONNECT_S = 2.0
IDLE_S = 60.0
"""How long a connection to a replica is kept for the next request; replicas keep theirs longer."""
MAX_UNREAD = 256 * 2**10
"""Bytes of an answer that wait here for a slow client, about; then the replica has to wait."""


class Connection(asyncio.Protocol):
    """One connection: :meth:`ask`, then :meth:`read` until there is nothing more, then :meth:`ask` again.

    ``status`` and ``headers`` (names in lower case) are those of the answer, once ``ask`` has returned. Whatever breaks
    raises OSError.
    """

    def __init__(self) -> None:
        self.status, self.headers = 0, dict[str, str]()
        self.complete = False
        self.kept_s = 0.0
        self._begun = self._paused = self._kept_open = False
        self._parser = httptools.HttpResponseParser(self)
        self._unread: list[bytes] = []
        self._size = 0
        self._error: OSError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport

    async def ask(self, request: bytes) -> None:
        """Send ``request``, head and body, and wait for the head of its answer."""
        self.complete = self._begun = False
        self.headers = {}
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)
        while not self._begun:
            await self._news()

    async def read(self) -> bytes:
        """What has come since, at least one byte; nothing at the end of the answer."""
        while not (self._unread or self.complete):
            await self._news()
        found = self._unread[0] if len(self._unread) == 1 else b"".join(self._unread)
        self._unread, self._size = [], 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return found

    async def read_all(self) -> bytes:
        """All that is left of the answer."""
        pieces = []
        while piece := await self.read():
            pieces.append(piece)
        return b"".join(pieces)

    def abort(self) -> None:
        """Close it at once. Whoever waits for it gets OSError."""
        self._transport.abort()
        self._end(ConnectionAbortedError("given up"))

    @property
    def reusable(self) -> bool:
        """Whether the answer has come to its end, and the replica takes another request."""
        return self.complete and not self._unread and self._error is None and self._kept_open

    async def _news(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self, error: OSError) -> None:
        self._error = self._error or error
        self._wake()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        self._end(error if isinstance(error, OSError) else ConnectionResetError("the connection was closed"))

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        if self.complete:  # nothing was asked
            return self.abort()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._end(ConnectionAbortedError(f"it does not speak HTTP: {error}"))
            self._transport.abort()
        self._wake()

    def on_message_begin(self) -> None:
        """Called by the parser, as all of these."""
        if self.complete:
            raise ValueError("an answer to nothing")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower().decode("latin-1")] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._begun = self.status >= 200  # others come before the answer itself

    def on_body(self, body: bytes) -> None:
        self._unread.append(body)
        self._size += len(body)
        if self._size > MAX_UNREAD and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        self.complete = self._begun
        self._kept_open = self._parser.should_keep_alive()  # by now: it forgets at the end of this


class Connections:
    """Kept connections, by address. ``https`` ones are made to whoever has the key of ``certificate`` (PEM), whatever
    its address; that file is read for each of them, so another one may take its place."""

    def __init__(self, certificate: Path | None = None) -> None:
        self._certificate = certificate
        self._kept: defaultdict[str, list[Connection]] = defaultdict(list)

    async def take(self, url: str) -> Connection:
        """A connection to ``url``, an address without a path. Raises OSError, also for ``https`` without a certificate,
        and TimeoutError."""
        kept = self._kept[url]
        while kept:
            found = kept.pop()
            if found.reusable:
                return found
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 0
        tls = _trust(self._certificate) if parts.scheme == "https" else None
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_S):
            _, made = await loop.create_connection(
                Connection, host, port, ssl=tls, server_hostname=host if tls else None
            )
        return made

    def give(self, url: str, connection: Connection) -> None:
        """Whoever took it is done: it is kept if it can be used again, else closed."""
        if connection.reusable:
            connection.kept_s = time.monotonic()
            self._kept[url].append(connection)
        else:
            connection.abort()

    def expire(self) -> None:
        """Close those that were not used for IDLE_S, or that the other side has closed."""
        oldest_s = time.monotonic() - IDLE_S
        for url, kept in list(self._kept.items()):
            fresh = [one for one in kept if one.reusable and one.kept_s > oldest_s]
            for one in kept:
                if one not in fresh:
                    one.abort()
            self._kept[url] = fresh
            if not fresh:
                del self._kept[url]

    def close(self) -> None:
        """Close all that are kept."""
        for kept in self._kept.values():
            for one in kept:
                one.abort()
        self._kept.clear()


def request(url: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """A POST of ``body`` to ``path`` at ``url``. Neither of ``path`` and ``headers`` comes from outside."""
    lines = [f"POST {path} HTTP/1.1", f"host: {url.rpartition('/')[2]}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _trust(certificate: Path | None) -> ssl.SSLContext:
    """Raises OSError if there is nothing to go by."""
    if certificate is None or not certificate.exists():
        raise OSError(f"no certificate to know a replica by: expected one at {certificate}")
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    return context
