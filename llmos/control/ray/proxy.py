"""The control module as seen from another process: finds the actor by name, and outlives its restarts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from llmos.control.known_keys import Asked, KnownKeys, no_answer
from llmos.control.ray.session import CONTROL, NAMESPACE
from llmos.errors import LlmosError

PATIENCE_S = 15.0
"""A killed control module is back within about 3 s; longer than this, and whoever asks should know."""
PAUSE_S = 0.2

_REPEATABLE = (
    *("list_", "get_", "job_", "describe_", "explain_", "status", "usage"),
    *("put_service", "cancel_job", "drain_", "undrain_", "set_key"),
)

_log = logging.getLogger("llmos.front")


class ControlProxy:
    """Implements :class:`llmos.control.api.ControlPort` over the actor."""

    def __init__(self) -> None:
        self._keys = KnownKeys(self._authorize_all)

    async def call(self, verb: str, authorization: str | None, **arguments: Any) -> Any:
        """The answer of ``verb``. Repeated while the control module restarts, unless doing it twice would differ.

        It is not asked for whoever has no valid key, so that a flood of wrong ones is nothing to it.
        """
        await self._keys.authorize(authorization, "infer")  # as every valid key allows; it checks for itself what more
        repeatable = verb.startswith(_REPEATABLE) or bool(arguments.get("idempotency_key"))
        return await self._ask("call", verb, authorization, arguments, repeatable=repeatable)

    async def authorize(self, authorization: str | None, scope: str) -> dict[str, Any]:
        """The key in the header, if it allows ``scope``; remembered for a moment."""
        return await self._keys.authorize(authorization, scope)

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

    async def _authorize_all(self, asked: Sequence[Asked]) -> Sequence[dict[str, Any] | LlmosError]:
        return list(await self._ask("authorize_all", list(asked)))

    async def _ask(self, method: str, *arguments: Any, repeatable: bool = True, patience_s: float = PATIENCE_S) -> Any:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                actor = await asyncio.to_thread(_find)
                answer = await getattr(actor, method).remote(*arguments)
            except RayTaskError as error:  # a bug there, which its log has, too: whoever asks can only ask again
                _log.exception("the control module failed to answer %s", method)
                raise no_answer() from error
            except (_Away, RayActorError, GetTimeoutError) as error:
                if not (repeatable or isinstance(error, _Away)) or time.monotonic() > deadline:
                    raise no_answer() from error
                await asyncio.sleep(PAUSE_S)
                continue
            if isinstance(answer, LlmosError):
                raise answer
            return answer


class _Away(Exception):
    """There is no control actor by its name at the moment: nothing was asked of it."""


def _find() -> Any:
    try:
        return ray.get_actor(CONTROL, NAMESPACE)
    except ValueError as error:
        raise _Away from error
