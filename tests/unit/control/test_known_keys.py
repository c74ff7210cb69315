"""Keys that the front door knows, and floods of those that nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from llmos.control import known_keys as module
from llmos.control.known_keys import Asked, KnownKeys
from llmos.errors import AuthError, CapacityError, ForbiddenError, LlmosError

GOOD = "Bearer good"


class Control:
    """Knows one key, for one scope. Counts questions, and what was asked in them."""

    def __init__(self, answer_s: float = 0.0) -> None:
        self.questions = self.keys = 0
        self._answer_s = answer_s

    async def ask(self, asked: Sequence[Asked]) -> list[dict[str, Any] | LlmosError]:
        self.questions += 1
        self.keys += len(asked)
        await asyncio.sleep(self._answer_s)
        return [self._say(*one) for one in asked]

    def _say(self, header: str | None, scope: str) -> dict[str, Any] | LlmosError:
        if header != GOOD:
            return AuthError("the API key is not valid")
        return {"id": "k"} if scope == "infer" else ForbiddenError("it may not")


async def refused(known: KnownKeys, header: str | None, scope: str = "infer") -> LlmosError:
    with pytest.raises(LlmosError) as found:
        await known.authorize(header, scope)
    return found.value


async def test_a_wrong_key_is_asked_about_once_and_again_when_that_is_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSED_S", 0.1)
    control = Control()
    known = KnownKeys(control.ask)
    found = [await refused(known, "Bearer wrong") for _ in range(100)]
    assert control.keys == 1 and {type(one) for one in found} == {AuthError} and len({*map(id, found)}) == 100
    assert isinstance(await refused(known, GOOD, "admin"), ForbiddenError) and control.keys == 2
    assert (await known.authorize(GOOD, "infer")) == {"id": "k"}  # the other scope was refused, not the key
    await asyncio.sleep(0.12)
    await refused(known, "Bearer wrong")
    assert control.keys == 4


async def test_a_flood_of_other_keys_is_few_questions_and_keeps_nobody_out() -> None:
    control = Control(0.01)
    known = KnownKeys(control.ask)
    flood = [asyncio.create_task(refused(known, f"Bearer {n}")) for n in range(2000)]
    await asyncio.sleep(0)
    assert await asyncio.wait_for(known.authorize(GOOD, "infer"), 5) == {"id": "k"}
    assert {type(one) for one in await asyncio.gather(*flood)} == {AuthError}
    assert control.keys == 2001 and control.questions <= 2001 / module.MAX_BATCH + 2


async def test_what_is_kept_of_keys_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in {"MAX_REFUSED": 10, "MAX_KNOWN": 10, "MAX_WAITING": 50}.items():
        monkeypatch.setattr(module, name, most)
    control = Control()
    known = KnownKeys(control.ask)
    asked = [asyncio.create_task(refused(known, f"Bearer {n}")) for n in range(60)]
    kinds = [type(one) for one in await asyncio.gather(*asked)]
    assert kinds == [AuthError] * 50 + [CapacityError] * 10
    assert len(known._refused) == 10 and not known._waiting and known._asker is None
    for n in range(20):
        with pytest.raises(LlmosError):
            await known.authorize(None, f"{n}")
    assert len(known._refused) == 10


async def test_a_key_is_the_same_object_while_nothing_new_is_known_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEY_FRESH_S", 0.05)
    control = Control()
    known = KnownKeys(control.ask)
    first = await known.authorize(GOOD, "infer")
    await asyncio.sleep(0.06)
    assert await known.authorize(GOOD, "infer") is first and control.questions == 2


async def test_a_control_module_with_a_bug_is_no_answer() -> None:
    async def ask(asked: Sequence[Asked]) -> list[dict[str, Any] | LlmosError]:
        raise ValueError("a bug")

    assert (await refused(KnownKeys(ask), GOOD)).http_status == 503
