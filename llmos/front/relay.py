"""A replica's answer, byte by byte: asked for at one replica after the other until one has begun, then passed on.

Nothing is asked twice once a byte of its answer is on its way to the client: an answer that breaks off then ends with
an error. Nothing is parsed: the one thing looked at is where server-sent events end, so that none is passed on in part.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncGenerator
from pathlib import Path

from llmos.errors import AuthError, EngineError, UsageError, from_json
from llmos.front.caller import HEADER, place, sign
from llmos.front.connection import Connection, Connections, request
from llmos.front.fleet import Fleet
from llmos.front.prompts import Prompts
from llmos.front.turns import Question, Turn, Turns, Warming

DRAINING = "llmos-draining"
"""The header of a replica's 503 that means: ask another one."""
ERROR = "llmos-error"
"""The header of an answer that is a :meth:`llmos.errors.LlmosError.to_json`."""
MAX_FAILED = 3
"""A request over which so many replicas have failed is asked no more: it may be what ends them."""
_END = b"\n\n"

_log = logging.getLogger(__name__)


class Broken(Exception):
    """The replica has not answered, or not to the end: it is gone, or was given up."""


class Draining(Exception):
    """The replica takes nothing new."""


class Relay:
    """Asks the replicas of ``fleet``, in the event loop that :meth:`pieces` is called from.

    ``secret`` is the cluster's; ``certificate`` what replicas on other machines show.
    """

    def __init__(self, fleet: Fleet, secret: bytes, certificate: Path | None = None) -> None:
        self._fleet, self._secret = fleet, secret
        self._prompts = Prompts()
        self._warming = Warming(fleet, self._prompts)
        self._exchanges: set[Exchange] = set()
        self._connections = Connections(certificate)

    async def pieces(self, question: Question) -> AsyncGenerator[bytes, None]:
        """The answer's bytes as they come, whole events each; all at once unless ``streamed``.

        Closing this ends the request at the replica. Raises what the replica raised, UnavailableError when there is
        none, EngineError when an answer that has begun breaks off.
        """
        exchange = await self._begin(question)
        try:
            yield exchange.first
            if question.streamed:
                async for piece in exchange.rest():
                    yield piece
        except Broken as error:
            self._fleet.suspect(exchange.replica.replica)
            what = f"the replica of `{question.service}` ended while it answered"
            raise EngineError(what, hint="Ask again: others answer, or it is started anew.") from error
        finally:
            self._end(exchange)

    async def whole(self, question: Question) -> bytes:
        """All of the answer to a question that is not streamed, as :meth:`pieces`; being cancelled, it ends the request
        at the replica."""
        exchange = await self._begin(question)
        self._end(exchange)
        return exchange.first

    def look(self) -> None:
        """Give up exchanges with replicas that nothing is to be expected of. To be called about twice a second."""
        now = time.monotonic()
        for exchange in list(self._exchanges):
            if self._fleet.dead(exchange.replica.replica, now - exchange.heard_s):
                exchange.give_up()
        self._connections.expire()
        self._warming.look()

    async def close(self) -> None:
        """Close all connections that nobody uses."""
        self._connections.close()

    async def _begin(self, question: Question) -> Exchange:
        """An exchange whose first byte is there."""
        turns, failed = Turns(self._fleet, self._prompts, question), 0
        while True:
            exchange = Exchange(self._connections, await turns.next())
            replica = exchange.replica
            self._exchanges.add(exchange)
            try:
                await exchange.begin(question, self._secret)
                exchange.turn.answers()
                if question.begun is not None:
                    question.begun(replica)
                return exchange
            except Draining:
                self._fleet.drained(replica.replica)
                self._end(exchange)
            except Broken as error:
                _log.warning("replica %s of %s is passed over: %s", replica.replica, replica.service, error)
                self._fleet.suspect(replica.replica)
                self._end(exchange)
                failed += exchange.asked
                if failed == MAX_FAILED:
                    what = f"{failed} replicas of `{question.service}` failed over this request"
                    raise EngineError(what, hint="Ask for something else.") from error
            except BaseException:
                self._end(exchange)
                raise

    def _end(self, exchange: Exchange) -> None:
        exchange.close()
        self._exchanges.discard(exchange)
        exchange.turn.ended()


class Exchange:
    """One request at the replica whose ``turn`` it is, which has ``asked`` once it is connected. ``first`` is the
    beginning of its answer, ``heard_s`` when its last byte came."""

    def __init__(self, connections: Connections, turn: Turn) -> None:
        self._connections, self.turn, self.replica = connections, turn, turn.replica
        self.first, self._half = b"", b""
        self.heard_s = time.monotonic()
        self.asked = False
        self._connection: Connection | None = None

    async def begin(self, question: Question, secret: bytes) -> None:
        """Ask, and wait for the first bytes, for all of them unless ``streamed``. Raises Draining, Broken, and what the
        replica answered if that is an error."""
        url = self.replica.url
        try:
            connection = self._connection = await self._connections.take(url)
            self.asked = True
            caller = sign(question.caller, secret, place(url, question.path))
            headers = {HEADER: caller, "content-type": "application/json"}
            await connection.ask(request(url, question.path, question.body, headers))
            if connection.status != 200:
                raise _told(connection, await connection.read_all())
            self.first = await (self._some(connection) if question.streamed else connection.read_all())
        except (TimeoutError, OSError) as error:
            raise Broken(f"{type(error).__name__}: {error}") from error
        if not self.first:
            raise Broken("it answered nothing")

    async def rest(self) -> AsyncGenerator[bytes, None]:
        """What comes after ``first``, in whole events. Raises Broken."""
        assert self._connection is not None
        try:
            while piece := await self._some(self._connection):
                yield piece
        except OSError as error:
            raise Broken(f"{type(error).__name__}: {error}") from error
        if self._half:
            raise Broken("its last event was not whole")

    async def _some(self, connection: Connection) -> bytes:
        """The whole events that have come, at least one; nothing at the end."""
        while data := await connection.read():
            self.heard_s = time.monotonic()
            if not self._half and data.endswith(_END):
                return data
            data = self._half + data
            end = data.rfind(_END) + len(_END)
            if end >= len(_END):
                self._half = data[end:]
                return data[:end]
            self._half = data
        return b""

    def give_up(self) -> None:
        """Whoever waits for it gets Broken. One that is still connecting does so by itself, soon."""
        if self._connection is not None:
            self._connection.abort()

    def close(self) -> None:
        """Let go of the connection: it is kept for the next request if the answer is complete, else closed."""
        if self._connection is not None:
            self._connections.give(self.replica.url, self._connection)
            self._connection = None


def _told(answer: Connection, body: bytes) -> Exception:
    """What an answer other than 200 means."""
    if answer.status == 503 and DRAINING in answer.headers:
        return Draining()
    if ERROR in answer.headers:
        error = from_json(json.loads(body))
        ours = type(error) is EngineError or isinstance(
            error, AuthError
        )  # of its engine, or of this front door's header
        return Broken(str(error)) if ours else error
    what = f"the replica answered {answer.status}: {body[:500].decode(errors='replace')}"
    return UsageError(what) if 400 <= answer.status < 500 else EngineError(what)
