"""The control module as seen from another process: finds the actor by name, and outlives its restarts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from llmos.control.ray.session import CONTROL, NAMESPACE
from llmos.errors import ClusterError, LlmosError

PATIENCE_S = 15.0
"""A killed control module is back within about 3 s; longer than this, and whoever asks should know."""
PAUSE_S = 0.2
KEY_FRESH_S = 1.0
"""How long a key that was valid is taken for valid: also how late a revoked key stops working."""
KEY_GRACE_S = 60.0
"""The same while the control module is away, so that text goes on being generated."""
KEY_WAIT_S = 1.0
"""One that has not said anything for so long is away, too: it may hang."""

_REPEATABLE = (
    *("list_", "get_", "job_", "describe_", "explain_", "status", "usage"),
    *("put_service", "cancel_job", "drain_", "undrain_", "set_key"),
)


class ControlProxy:
    """Implements :class:`llmos.control.api.ControlPort` over the actor."""

    def __init__(self) -> None:
        self._keys: dict[tuple[str | None, str], tuple[float, dict[str, Any]]] = {}
        self._asking: dict[tuple[str | None, str], tuple[asyncio.Task[None], float]] = {}

    async def call(self, verb: str, authorization: str | None, **arguments: Any) -> Any:
        """The answer of ``verb``. Repeated while the control module restarts, unless doing it twice would differ."""
        repeatable = verb.startswith(_REPEATABLE) or bool(arguments.get("idempotency_key"))
        return await self._ask("call", verb, authorization, arguments, repeatable=repeatable)

    async def authorize(self, authorization: str | None, scope: str) -> dict[str, Any]:
        """The key in the header, if it allows ``scope``; remembered for a moment."""
        place = authorization, scope
        if place in self._keys and (age_s := time.monotonic() - self._keys[place][0]) < KEY_GRACE_S:
            if age_s > KEY_FRESH_S / 2:
                asking, since_s = self._ask_beside(place)
                if age_s >= KEY_FRESH_S:
                    await asyncio.wait([asking], timeout=max(0.0, since_s + KEY_WAIT_S - time.monotonic()))
            if place in self._keys:  # it is not when it has turned out to be no longer valid
                return self._keys[place][1]
        return await self._check(authorization, scope)

    async def _check(self, authorization: str | None, scope: str) -> dict[str, Any]:
        asked_s = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_S):
                key = await self._ask("authorize", authorization, scope)
        except TimeoutError as error:
            raise _no_answer() from error
        except ClusterError:
            raise
        except LlmosError:
            self._keys.pop((authorization, scope), None)
            raise
        self._forget_old()
        self._keys[authorization, scope] = asked_s, key
        return dict(key)

    def _ask_beside(self, place: tuple[str | None, str]) -> tuple[asyncio.Task[None], float]:
        """Ask again while the key counts, once for all who use it, so that nobody who does so all the time has to wait.
        Returns also since when."""

        async def ask() -> None:
            with suppress(LlmosError):  # whoever shows the key next is told
                await self._check(*place)

        if place not in self._asking:
            self._asking[place] = asyncio.create_task(ask()), time.monotonic()
            self._asking[place][0].add_done_callback(lambda _: self._asking.pop(place))
        return self._asking[place]

    async def fleet(self, door: str = "", asked: Mapping[str, tuple[int, int]] | None = None) -> dict[str, Any]:
        """The services and the replicas that answer, as :meth:`llmos.control.ray.actor.ControlActor.fleet` says."""
        return dict(await self._ask("fleet", door, asked, patience_s=0.0))

    async def completions(self, verb: str, tenant: str, **arguments: Any) -> Any:
        """See :class:`llmos.openai.stored.CompletionPort`. Doing one twice changes nothing, but for removing."""
        return await self._ask("completions", verb, tenant, arguments, repeatable=verb != "remove")

    async def training(self) -> list[dict[str, Any]]:
        """The newest metrics of running jobs: ``{id, metrics}`` each."""
        return list(await self._ask("training", patience_s=0.0))

    async def record_usage(self, records: list[dict[str, Any]]) -> None:
        """Have requests counted, each once however often it is told. Raises ClusterError while that cannot be."""
        await self._ask("record_usage", records, patience_s=0.0)

    def _forget_old(self) -> None:
        oldest = time.monotonic() - KEY_GRACE_S
        self._keys = {known: entry for known, entry in self._keys.items() if entry[0] > oldest}

    async def _ask(self, method: str, *arguments: Any, repeatable: bool = True, patience_s: float = PATIENCE_S) -> Any:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                actor = await asyncio.to_thread(_find)
                answer = await getattr(actor, method).remote(*arguments)
            except (_Away, RayActorError, GetTimeoutError) as error:
                if not (repeatable or isinstance(error, _Away)) or time.monotonic() > deadline:
                    raise _no_answer() from error
                await asyncio.sleep(PAUSE_S)
                continue
            if isinstance(answer, LlmosError):
                raise answer
            return answer


def _no_answer() -> ClusterError:
    return ClusterError(
        "the control module did not answer; it restarts by itself",
        hint="try again in a few seconds; what was submitted before is not lost",
    )


class _Away(Exception):
    """There is no control actor by its name at the moment: nothing was asked of it."""


def _find() -> Any:
    try:
        return ray.get_actor(CONTROL, NAMESPACE)
    except ValueError as error:
        raise _Away from error
