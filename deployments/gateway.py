"""The front door as a detached actor: ``/v1/*`` passed on to replicas, ``/api/v1/*`` to the control module, and how
both are doing. It answers at the port that a doorman holds, who says 503 while it is being restarted."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from llmos.control.api import create_api
from llmos.control.http import error_response
from llmos.control.prometheus import exposition
from llmos.control.ray import doorman
from llmos.control.ray.proxy import ControlProxy
from llmos.errors import ClusterError, ForbiddenError, LlmosError
from llmos.front.caller import read_secret
from llmos.front.door import FrontDoor, ServiceBackend
from llmos.front.fleet import Fleet, News
from llmos.front.holding import Holding
from llmos.front.ledger import Ledger
from llmos.front.listening import Server, spare_garbage
from llmos.front.metering import Metering, deliver
from llmos.front.metrics import FrontMetrics
from llmos.front.relay import Relay
from llmos.layout import Layout
from llmos.openai.caller import Caller
from llmos.openai.server import create_app
from llmos.usage import Record

RETRY_S = 1.0

log = logging.getLogger("llmos.front")


class GatewayActor:
    """Serves from the moment it exists. It ends its process when it cannot go on: Ray starts it anew."""

    def __init__(self, state_dir: str, host: str, port: int) -> None:
        self._layout, self._host, self._port = Layout(Path(state_dir)), host, port
        self._failure: str | None = None
        threading.Thread(target=self._serve, name="llmos-gateway", daemon=True).start()

    def failure(self) -> str | None:
        """Why it does not answer, None while nothing is known to be wrong."""
        return self._failure

    def _serve(self) -> None:
        try:
            app, beside = self._build()
            port = self._ask_for_port()
            threading.Thread(target=self._keep_doorman, args=[port], name="llmos-port", daemon=True).start()
            server = Server(app, port.listener, beside=beside)
            spare_garbage()
            server.start()
            server.join()
        except Exception:
            log.exception("the front door ends")
        finally:
            os._exit(1)

    def _ask_for_port(self, held: socket.socket | None = None) -> doorman.Port:
        while True:
            try:
                port = doorman.ask(self._host, self._port, self._layout.front_socket, held)
                self._failure = None
                return port
            except (LlmosError, OSError) as error:
                self._failure = str(error)
                log.error("%s", error)
                time.sleep(RETRY_S)

    def _keep_doorman(self, port: doorman.Port) -> None:
        """Without a doorman, nobody would be at the port when this process dies."""
        while True:
            port.wait()
            log.error("the process that holds the port has ended: starting another")
            port.close()
            port = self._ask_for_port(port.listener)

    def _build(self) -> tuple[FrontDoor, Callable[[], Awaitable[None]]]:
        """The application, and what runs beside it."""
        control, name = ControlProxy(), uuid4().hex  # one that has been restarted counts from zero

        async def read() -> News:
            return News(**await control.fleet(name, held.asked()))

        async def authorize(request: Request, scope: str) -> Caller:
            key = await control.authorize(request.headers.get("Authorization"), scope)
            metering.knows(key)
            return Caller(key["id"], key["tenant"])

        async def remove(service: str, authorization: str | None) -> None:
            await control.call("delete_service", authorization, name=service)

        async def record(records: list[Record]) -> None:
            await control.record_usage([one.fields for one in records])

        async def beside() -> None:
            await asyncio.gather(fleet.follow(held.look), deliver(metering.ledger, record))

        fleet = Fleet(read)
        metrics = FrontMetrics(fleet.beats)
        metering = Metering(Ledger(self._layout.usage), metrics, lambda service: fleet.services[service].limits)
        relay = Relay(fleet, read_secret(self._layout), self._layout.certificate)
        held = Holding(fleet, relay)
        app = create_app(ServiceBackend(fleet, held, metering, remove), authorize, stored=control)
        return FrontDoor(app, _health(control, metrics), create_api(control), metering), beside


def _health(control: ControlProxy, front: FrontMetrics) -> FastAPI:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/healthz")
    async def healthz() -> Response:
        """Whether the front door itself answers. The one route without a key."""
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def readyz(request: Request) -> Response:
        """Whether the control module answers, too."""
        await control.authorize(request.headers.get("Authorization"), "infer")
        await control.fleet()
        return JSONResponse({"ready": True})

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """How the front door does and, for a key that may ask for jobs, how training does."""
        authorization = request.headers.get("Authorization")
        await control.authorize(authorization, "infer")
        text = generate_latest() + front.text()
        # without the control module, and for other keys, the front door's own are what there is to tell
        with suppress(ForbiddenError, ClusterError):
            await control.authorize(authorization, "submit")
            text += exposition(await control.training())
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(LlmosError)
    async def told(_request: Request, error: LlmosError) -> Response:
        return error_response(error)

    return app
