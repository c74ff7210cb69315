"""What a replica answers at its own port: the routes of ``/v1`` for the front door, which gets errors as they are.

What the front door has seen to – parameters without effect, idempotency keys, answers that are stored – is not looked
at again on the two routes that most requests are for.
"""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from llmos.errors import LlmosError
from llmos.front.relay import ERROR
from llmos.openai.answering import Answering
from llmos.openai.server import MAX_BODY_BYTES, Authorize, OpenAIBackend, create_app
from llmos.openai.stored import Keeper, Nowhere


def create_replica_app(backend: OpenAIBackend, authorize: Authorize) -> FastAPI:
    """The application of a replica. Its errors say which leaf of ``errors`` they are: the front door raises them."""
    app = create_app(backend, authorize)
    answering = Answering(backend, Keeper(Nowhere()))
    app.heat(authorize, answering.bare, MAX_BODY_BYTES)

    async def told(_: Request, error: Exception) -> Response:
        assert isinstance(error, LlmosError)
        return JSONResponse(error.to_json(), error.http_status, {ERROR: "1"})

    app.add_exception_handler(LlmosError, told)
    return app
