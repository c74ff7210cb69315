"""Our front door over a fixed table of replicas, without a cluster: Ray adds nothing to the path of a request.

    python -m benchmarks.frontdoor.ours PORT URL …

What the gateway has from the control module is fixed here: the services, their replicas at ``URL`` …, and the one key,
in ``LLMOS_API_KEY``. ``/echo`` goes through the same server and the same relay, past the checks and the router: what is
left is the cheapest front door that these two could make.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import tempfile
from pathlib import Path

from fastapi import Request
from starlette.requests import Request as PlainRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.frontdoor.mock import ENV_DOOR, PACES_S
from llmos.errors import AuthError, ForbiddenError
from llmos.front.door import FrontDoor, ServiceBackend
from llmos.front.fleet import Fleet, News
from llmos.front.holding import Holding
from llmos.front.ledger import Ledger
from llmos.front.listening import Server, listen, spare_garbage
from llmos.front.metering import Metering, deliver
from llmos.front.metrics import FrontMetrics
from llmos.front.relay import Relay
from llmos.front.turns import Question
from llmos.heartbeat import Heartbeat, Route
from llmos.openai.caller import Caller
from llmos.openai.server import Authorize, create_app
from llmos.settings import ENV_KEY
from llmos.usage import Record

_ENOUGH = {"requests_per_min": 10**9, "tokens_per_min": 10**12, "concurrency": 10**6}
"""Limits of the one key, which are looked at, and never reached."""


def table(urls: list[str]) -> News:
    """Every service, each with a replica at each of ``urls``."""
    beats = [Heartbeat(name, "1", f"{name}-{url}", url) for name in PACES_S for url in urls]
    return News(dict.fromkeys(PACES_S, Route()), beats)


def known_key(key: str, metering: Metering) -> Authorize:
    """What the gateway does for a key that it remembers: look its header up, and what it may do."""
    known = {_digest(f"Bearer {key}"): Caller("benchmark", "default")}
    may = {"id": "benchmark", "tenant": "default", "limits": _ENOUGH, "tenant_limits": {}}

    async def authorize(request: Request, _scope: str) -> Caller:
        found = known.get(_digest(request.headers.get("Authorization", "")))
        if found is None:
            raise AuthError("the API key is missing or not valid", hint="Send `Authorization: Bearer KEY`.")
        metering.knows(may)
        return Caller(found.key, found.tenant)

    return authorize


def _digest(header: str) -> bytes:
    return hashlib.sha256(header.encode()).digest()


def with_echo(app: ASGIApp, relay: Relay) -> ASGIApp:
    """``app``, with ``/echo`` beside it, which passes bodies to ``/echo`` of a replica."""
    caller, service = Caller("benchmark"), next(iter(PACES_S))

    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/echo":
            return await app(scope, receive, send)
        body = await PlainRequest(scope, receive).body()
        pieces = relay.pieces(Question(service, "/echo", body, caller, streamed=False))
        answer = b"".join([piece async for piece in pieces])
        await Response(answer, media_type="application/json")(scope, receive, send)

    return both


def main() -> None:
    """Serve on port ``sys.argv[1]`` until SIGTERM."""
    port, *urls = sys.argv[1:]
    news = table(urls)

    async def read() -> News:
        return news

    async def remove(_service: str, _authorization: str | None) -> None:
        raise ForbiddenError("a benchmark's services stay")

    fleet = Fleet(read)
    relay = Relay(fleet, os.environ[ENV_DOOR].encode())
    held = Holding(fleet, relay)
    ledger = Ledger(Path(tempfile.mkdtemp(prefix="llmos-usage-")))
    metering = Metering(ledger, FrontMetrics(fleet.beats), lambda service: fleet.services[service].limits)
    openai = create_app(ServiceBackend(fleet, held, metering, remove), known_key(os.environ[ENV_KEY], metering))
    door = FrontDoor(openai, openai, openai, metering)

    async def record(_records: list[Record]) -> None:
        """The control module's part, which another process does."""
        await asyncio.sleep(0)

    async def follow() -> None:
        await asyncio.gather(fleet.follow(held.look), deliver(ledger, record))

    server = Server(with_echo(door, relay), listen("127.0.0.1", int(port)), beside=follow)
    spare_garbage()
    server.start()
    server.join()


if __name__ == "__main__":
    main()
