"""Keys as the front door knows them: what the control module has said of each, for a while, and one question for many.

A valid key is taken for valid for KEY_FRESH_S, and asked about again beside the requests that use it, so that nobody
waits who uses one all the time; while the control module is away it counts for KEY_GRACE_S. One that was refused is
refused for REFUSED_S without asking. Whoever sends keys that nobody has seen, however many, has the control module
asked once at a time, for up to MAX_BATCH of them together. All of it is bounded. Headers are known by their digests:
they are not kept, and how long a look-up takes says nothing of them.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from llmos.errors import AuthError, CapacityError, ClusterError, ForbiddenError, LlmosError

KEY_FRESH_S = 1.0
"""How long a key that was valid is taken for valid: also how late a revoked key stops working."""
KEY_GRACE_S = 60.0
"""The same while the control module is away, so that text goes on being generated."""
KEY_WAIT_S = 1.0
"""One that has not said anything for so long is away, too: it may hang."""
REFUSED_S = 1.0
"""How long a key that was not valid is refused without asking: so late a new one begins to work, if it was guessed."""
PATIENCE_S = 15.0
"""How long a key that is not known waits for the control module."""
MAX_BATCH, MAX_WAITING = 256, 4096
MAX_KNOWN, MAX_REFUSED = 16_384, 4096

Asked = tuple[str | None, str]
"""An ``Authorization`` header and a scope."""
Ask = Callable[[Sequence[Asked]], Awaitable[Sequence[dict[str, Any] | LlmosError]]]
_Place = tuple[bytes, str]
_log = logging.getLogger(__name__)


class KnownKeys:
    """For one event loop. ``ask`` says of each header and scope what the control module's ``authorize`` does: the key,
    or the error."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        # the oldest first, with when it was asked about, and until when it is refused
        self._known: OrderedDict[_Place, tuple[float, dict[str, Any]]] = OrderedDict()
        self._refused: OrderedDict[_Place, tuple[float, LlmosError]] = OrderedDict()
        self._waiting: OrderedDict[_Place, tuple[Asked, asyncio.Future[dict[str, Any]]]] = OrderedDict()
        self._beside: dict[_Place, tuple[asyncio.Task[None], float]] = {}
        self._asker: asyncio.Task[None] | None = None

    async def authorize(self, authorization: str | None, scope: str) -> dict[str, Any]:
        """The key in the header, if it allows ``scope``: the same object as long as nothing new is known of it.

        Raises AuthError, ForbiddenError; ClusterError when the control module does not answer; CapacityError when too
        many keys that nobody knows wait to be asked about.
        """
        place = hashlib.sha256((authorization or "").encode(errors="surrogatepass")).digest(), scope
        if (entry := self._known.get(place)) and (age_s := time.monotonic() - entry[0]) < KEY_GRACE_S:
            if age_s <= KEY_FRESH_S / 2:
                return entry[1]
            asking, since_s = self._ask_beside(place, (authorization, scope))
            if age_s >= KEY_FRESH_S:
                await asyncio.wait([asking], timeout=max(0.0, since_s + KEY_WAIT_S - time.monotonic()))
            if entry := self._known.get(place):  # it is not there when it has turned out to be no longer valid
                return entry[1]
        return await self._check(place, (authorization, scope))

    async def _check(self, place: _Place, asked: Asked) -> dict[str, Any]:
        until_s, refused = self._refused.get(place, (0.0, None))
        if refused is not None and time.monotonic() < until_s:
            raise copy.copy(refused)
        if place not in self._waiting:
            if len(self._waiting) >= MAX_WAITING:
                what = f"{MAX_WAITING} keys that are not known yet wait to be checked"
                raise CapacityError(what, hint="Ask again in a second.")
            self._waiting[place] = asked, asyncio.get_running_loop().create_future()
            if self._asker is None:
                self._asker = asyncio.create_task(self._work())
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await asyncio.shield(self._waiting[place][1])
        except TimeoutError as error:
            raise no_answer() from error

    def _ask_beside(self, place: _Place, asked: Asked) -> tuple[asyncio.Task[None], float]:
        """Ask again while the key counts, once for all who use it. Returns also since when."""

        async def ask() -> None:
            with suppress(LlmosError):  # whoever shows the key next is told
                await self._check(place, asked)

        if place not in self._beside:
            self._beside[place] = asyncio.create_task(ask()), time.monotonic()
            self._beside[place][0].add_done_callback(lambda _: self._beside.pop(place))
        return self._beside[place]

    async def _work(self) -> None:
        """Ask for those who wait, all at once, until nobody does."""
        try:
            while self._waiting:
                batch = list(islice(self._waiting.items(), MAX_BATCH))
                asked_s = time.monotonic()
                answers = await self._answers([asked for _, (asked, _) in batch])
                for (place, (_, future)), answer in zip(batch, answers, strict=True):
                    del self._waiting[place]
                    self._learn(place, asked_s, future, answer)
        finally:
            self._asker = None

    async def _answers(self, asked: list[Asked]) -> Sequence[dict[str, Any] | LlmosError]:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._ask(asked)
        except LlmosError as error:
            return [error] * len(asked)
        except Exception:
            _log.exception("the control module could not be asked about keys")
            return [no_answer()] * len(asked)

    def _learn(
        self, place: _Place, asked_s: float, future: asyncio.Future[dict[str, Any]], answer: dict[str, Any] | LlmosError
    ) -> None:
        if isinstance(answer, LlmosError):
            if isinstance(answer, AuthError | ForbiddenError):
                self._known.pop(place, None)
                self._refused[place] = time.monotonic() + REFUSED_S, answer
                _bound(self._refused, MAX_REFUSED)
            if not future.done():
                future.set_exception(copy.copy(answer))
                future.exception()  # whoever asked may have given up
            return
        self._refused.pop(place, None)
        before = self._known.pop(place, None)
        self._known[place] = asked_s, before[1] if before and before[1] == answer else answer
        _bound(self._known, MAX_KNOWN)
        if not future.done():
            future.set_result(self._known[place][1])


def _bound(entries: OrderedDict[_Place, Any], most: int) -> None:
    """Forget the oldest."""
    while len(entries) > most:
        entries.popitem(last=False)


def no_answer() -> ClusterError:
    """The control module is away."""
    return ClusterError(
        "the control module did not answer; it restarts by itself",
        hint="try again in a few seconds; what was submitted before is not lost",
    )
