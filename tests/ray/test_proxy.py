"""Keys while the control module answers, says that they count no more, hangs, or is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from llmos.control import known_keys
from llmos.control.ray import proxy as module
from llmos.control.ray.proxy import ControlProxy
from llmos.errors import AuthError, ClusterError

KEY = {"id": "k", "tenant": "t"}


class Actor:
    """A control module that does ``what`` when it is asked about keys."""

    def __init__(self) -> None:
        self.asked = 0
        self.what: Callable[[], Awaitable[Any]] = self.says
        self.authorize_all = SimpleNamespace(remote=self._authorize_all)

    async def says(self) -> Any:
        return KEY

    async def hangs(self) -> Any:
        await asyncio.Event().wait()

    async def refuses(self) -> Any:
        return AuthError("revoked")

    async def fails(self) -> Any:
        raise RayTaskError("authorize_all", "a trace", ValueError("a bug"))

    async def _authorize_all(self, asked: Sequence[tuple[str | None, str]]) -> Any:
        self.asked += 1
        return [await self.what() for _ in asked]


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch) -> Actor:
    made = Actor()
    monkeypatch.setattr(module, "_find", lambda: made)
    for name, value in {"KEY_FRESH_S": 0.1, "KEY_WAIT_S": 0.2, "PATIENCE_S": 1.0, "REFUSED_S": 0.1}.items():
        monkeypatch.setattr(known_keys, name, value)
    return made


async def test_a_control_module_that_hangs_stops_no_key_that_was_valid(actor: Actor) -> None:
    control, loop = ControlProxy(), asyncio.get_running_loop()
    assert await control.authorize("key", "infer") == KEY
    actor.what = actor.hangs
    await asyncio.sleep(0.15)
    began_s = loop.time()
    found = await asyncio.gather(*(control.authorize("key", "infer") for _ in range(20)))
    assert found == [KEY] * 20 and loop.time() - began_s < 0.6
    assert await control.authorize("key", "infer") == KEY
    assert actor.asked == 2  # once for all of them
    with pytest.raises(ClusterError):
        await control.authorize("another", "infer")


async def test_a_revoked_key_is_refused_once_it_is_asked_about(actor: Actor) -> None:
    control = ControlProxy()
    await control.authorize("key", "infer")
    actor.what = actor.refuses
    await asyncio.sleep(0.15)
    with pytest.raises(AuthError):
        await control.authorize("key", "infer")
    with pytest.raises(AuthError):
        await control.call("status", "key")  # without asking for the status
    actor.what = actor.says
    await asyncio.sleep(0.15)
    assert await control.authorize("key", "infer") == KEY


async def test_a_control_module_that_fails_is_as_one_that_is_away(actor: Actor) -> None:
    actor.what = actor.fails
    with pytest.raises(ClusterError, match="did not answer"):
        await ControlProxy().authorize("key", "infer")
    actor.fleet = SimpleNamespace(remote=lambda *_: actor.fails())  # type: ignore[attr-defined]
    with pytest.raises(ClusterError, match="did not answer"):
        await ControlProxy().fleet()
