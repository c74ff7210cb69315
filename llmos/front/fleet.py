"""Which replicas there are, as the front door knows them: what the control module told last, and what it saw itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

from llmos.errors import ClusterError, LlmosError, UnavailableError
from llmos.front.routing import Router
from llmos.heartbeat import Heartbeat, Route
from llmos.openai.errors import unknown_model

REFRESH_S = 0.5
ASK_S = 2.0
SUSPECT_S = 3.0
"""For how long nothing new goes to a replica that could not be reached, if there is another."""
SILENCE_S = 15.0
"""A replica that says nothing for so long, neither bytes nor heartbeats, is dead to those who wait for it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class News:
    """What the control module knows. ``services`` are all that there should be, by name.

    Unless ``complete``, it has just started: replicas that it does not name may be there all the same.
    """

    services: Mapping[str, Route] = field(default_factory=dict)
    replicas: Sequence[Heartbeat] = ()
    complete: bool = True


class Fleet:
    """The services and their replicas, of which ``router`` chooses. ``read`` asks the control module; ``clock`` gives
    seconds."""

    def __init__(self, read: Callable[[], Awaitable[News]], clock: Callable[[], float] = time.monotonic) -> None:
        self._read, self.clock = read, clock
        self.router = Router()
        self.services: Mapping[str, Route] = {}
        self._named: dict[str, str] = {}
        self._replicas: dict[str, Heartbeat] = {}
        self._suspects: dict[str, float] = {}
        self._draining: set[str] = set()
        self._asking: asyncio.Future[News] | None = None
        self._told_s = self.clock()  # when the control module said something last
        self.known = False
        """Whether the control module has answered once."""

    async def follow(self, every: Callable[[], None]) -> None:
        """Ask the control module every REFRESH_S, for ever, and call ``every`` afterwards, also while it is away: then
        what it said last stays true."""
        while True:
            try:
                await self.refresh()
            except (LlmosError, TimeoutError) as error:
                _log.info("the control module tells nothing about replicas: %s", error)
            every()
            await asyncio.sleep(REFRESH_S)

    async def refresh(self) -> None:
        """Ask the control module, once for all who want that at the same time. Raises what asking it raises, and
        TimeoutError."""
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._news())
            self._asking.add_done_callback(self._asked)
        await asyncio.shield(self._asking)

    async def _news(self) -> News:
        """What the control module says. Whatever goes wrong there, those who ask are to be told that it is away."""
        try:
            return await asyncio.wait_for(self._read(), ASK_S)
        except (LlmosError, TimeoutError):
            raise
        except Exception as error:
            _log.exception("what the control module told about replicas cannot be used")
            raise ClusterError("the control module failed to say which replicas there are") from error

    def _asked(self, asked: asyncio.Future[News]) -> None:
        self._asking = None
        if not asked.cancelled() and asked.exception() is None:
            self.learn(asked.result())

    def learn(self, news: News) -> None:
        """Take over what the control module knows."""
        told = {beat.replica: beat for beat in news.replicas}
        if news.complete:
            for replica in self._replicas.keys() - told.keys():
                self._forget(replica)
        self.services, self.known, self._told_s = news.services, True, self.clock()
        self._named = {alias: name for name, route in news.services.items() for alias in route.aliases}
        self._replicas |= told

    def _forget(self, replica: str) -> None:
        del self._replicas[replica]
        self._draining.discard(replica)
        self._suspects.pop(replica, None)
        self.router.lost(replica)

    async def find(self, service: str, tried: set[str], session: str = "") -> Sequence[Heartbeat]:
        """As :meth:`fit`; before it says that there is nobody, it asks the control module once more."""
        try:
            return self.fit(service, tried, session)
        except LlmosError:
            with suppress(LlmosError, TimeoutError):
                await self.refresh()
        return self.fit(service, tried, session)

    def named(self, model: str) -> str:
        """The service that requests for ``model`` mean: aliases are other names of one."""
        return self._named.get(model, model)

    def beats(self) -> list[Heartbeat]:
        """What each replica said last."""
        return list(self._replicas.values())

    def answering(self, service: str) -> int:
        """How many replicas of a service take requests."""
        return sum(self._takes(one) for one in self._replicas.values() if one.service == service)

    def _takes(self, one: Heartbeat) -> bool:
        return not (one.draining or one.replica in self._draining)

    def still(self, found: Sequence[Heartbeat]) -> Sequence[Heartbeat]:
        """Those of ``found`` that are there and take requests, as they are by now."""
        now = [self._replicas.get(one.replica) for one in found]
        return [one for one in now if one is not None and self._takes(one)]

    def model(self, found: Sequence[Heartbeat]) -> str | None:
        """The directory of the model by whose blocks one of ``found`` may be chosen, which have one revision if any.

        None where blocks say nothing: there is no choice, no cache, or more than one model.
        """
        first, *others = found
        route = self.services.get(first.service)
        if not others or route is None or any(one.revision != first.revision or not one.blocks for one in found):
            return None
        return route.models.get(first.revision)

    def routed(self) -> set[str]:
        """The directories of all models for which :meth:`model` has an answer."""
        groups = defaultdict[tuple[str, str], list[Heartbeat]](list)
        for one in self._replicas.values():
            groups[one.service, one.revision].append(one)
        return {model for group in groups.values() if (model := self.model(group))}

    def fit(self, service: str, tried: set[str], session: str = "") -> Sequence[Heartbeat]:
        """The replicas of ``service`` of which one is to be asked, at least one: they take requests, run the revision
        whose turn it is, and are none of ``tried``.

        Raises NotFoundError for a service that does not exist, UnavailableError when no replica is left.
        """
        there = [one for one in self._replicas.values() if one.service == service]
        fit = [one for one in there if self._takes(one) and one.replica not in tried]
        if not fit:
            self._none(service, tried)
        trusted = [one for one in fit if not (one.stalled or self._suspected(one.replica))]
        return self._revision(service, trusted or fit, session)

    def _revision(self, service: str, fit: Sequence[Heartbeat], session: str) -> Sequence[Heartbeat]:
        """Those of ``fit`` that run the revision whose turn it is, a session always the same. Where no revision that is
        to be asked can answer, all of them."""
        route = self.services.get(service)
        shares = {one: route.weights.get(one, 0.0) for one in sorted({one.revision for one in fit})} if route else {}
        if len(shares) < 2 or not sum(shares.values()):
            return fit
        turn = Random(session or None)  # seeded by the session: in each of its requests it draws the same
        (chosen,) = turn.choices(list(shares), list(shares.values()))
        return [one for one in fit if one.revision == chosen]

    def _none(self, service: str, tried: set[str]) -> None:
        if not self.known:
            raise UnavailableError("the front door has just started", hint="Ask again in a moment.")
        if service not in self.services:
            raise unknown_model(service, self.services)
        if tried:
            what = f"`{service}` lost {len(tried)} of its replicas while it was asked, and has no other"
            raise UnavailableError(what, hint="Ask again: they are started anew.", retry_after_s=2.0)
        hint = "It is starting, or not wanted: `llmos services` says which."
        raise UnavailableError(f"no replica of `{service}` is ready", hint=hint, retry_after_s=2.0)

    def _suspected(self, replica: str) -> bool:
        return self.clock() - self._suspects.get(replica, float("-inf")) < SUSPECT_S

    def suspect(self, replica: str) -> None:
        """It could not be reached, or broke off: nothing new goes there for SUSPECT_S if there is another."""
        self._suspects[replica] = self.clock()

    def drained(self, replica: str) -> None:
        """It has said that it takes nothing new."""
        self._draining.add(replica)

    def dead(self, replica: str, silent_s: float) -> bool:
        """Whether nothing more is to be expected of a replica from which no byte has come for ``silent_s``."""
        found = self._replicas.get(replica)
        if found is None or self.clock() - self._told_s > SILENCE_S:  # that it lives is too long ago to be believed
            return silent_s > SILENCE_S
        return found.stalled
