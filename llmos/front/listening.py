"""An ASGI application on a socket, in a thread with an event loop of its own; one that drains before it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from llmos.front.connection import IDLE_S
from llmos.front.protocol import BoundedHttp
from llmos.front.relay import DRAINING

START_S = 30.0
CLOSE_S = 1.0
_LOOK_S = 0.05
_GARBAGE = 3_000, 20, 20
"""When garbage is looked for (``gc.set_threshold``; Python's own: 700, 10, 10). Requests leave next to none that is not
gone by itself; but bodies that hang on some must not add up."""


class Drain:
    """ASGI middleware that counts the requests in ``app``; once :attr:`closing`, it lets no more in."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.closing = False
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if self.closing:
            headers = [(DRAINING.encode(), b"1"), (b"retry-after", b"1"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            return await send({"type": "http.response.body", "body": b""})
        self.running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.running -= 1

    def wait(self, limit_s: float) -> bool:
        """Let no more in, and wait for those that are, for at most ``limit_s``. Returns whether all are over."""
        self.closing = True
        deadline = time.monotonic() + limit_s
        while self.running and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        return not self.running


class Server(uvicorn.Server):
    """Serves ``app`` in a thread on ``listener``, from :meth:`start` on, until :meth:`end`.

    ``tls`` are the files of a certificate and its key. ``beside`` runs in the same loop as long as the server does.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        tls: tuple[Path, Path] | None = None,
        beside: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        certificate, key = map(str, tls) if tls else (None, None)
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http=BoundedHttp,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=int(2 * IDLE_S),
                timeout_graceful_shutdown=int(CLOSE_S),
                ssl_certfile=certificate,
                ssl_keyfile=key,
            )
        )
        self._listener, self._beside = listener, beside
        self._thread = threading.Thread(target=self._work, name="llmos-http", daemon=True)

    def start(self) -> None:
        """Returns once it answers. Raises TimeoutError."""
        self._thread.start()
        deadline = time.monotonic() + START_S
        while not self.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise TimeoutError("the HTTP server did not start; the log says why")
            time.sleep(_LOOK_S)

    def end(self) -> None:
        """Close the socket and every connection, and wait for that."""
        self.should_exit = True
        self._thread.join(START_S)

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join()

    def _work(self) -> None:
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(self._both())

    async def _both(self) -> None:
        other = asyncio.ensure_future(self._beside()) if self._beside else None
        try:
            await self.serve([self._listener])
        finally:
            if other is not None:
                other.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await other


def spare_garbage() -> None:
    """For a process that serves, once it is ready to: what is there by now stays, so that whoever collects garbage need
    not look at it again, which would keep every stream waiting."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GARBAGE)


def listen(host: str, port: int = 0) -> socket.socket:
    """A socket on ``host`` and a port that is free, or on ``port``."""
    return socket.create_server((host, port), backlog=2048)
