from __future__ import annotations

from types import SimpleNamespace

import httpx
import pytest

from llmos import Client, client, transport
from tests.unit.fake_api import KEY, FakeApi

URL = "http://cluster:8000"


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (client, transport):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=clock.sleep))
    return clock


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def cluster(api: FakeApi, clock: Clock) -> Client:
    return Client(URL, KEY, transport=httpx.MockTransport(api))
