from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.errors import CapacityError, RateLimitError, UsageError
from llmos.front.limits import Admission, Limiter, Limits, Party, Size, parties
from llmos.openai import errors

KEY = {"id": "k", "tenant": "t", "limits": {}, "tenant_limits": {}}


def key(name: str = "k", **limits: int) -> list[Party]:
    return [Party("key", name, Limits(**limits))]


SMALL = Size(1)


def refused(limiter: Limiter, who: list[Party], size: Size = SMALL, now: float = 0.0) -> RateLimitError:
    with pytest.raises(RateLimitError) as error:
        limiter.admit(who, size, now)
    return error.value


def test_requests_a_minute() -> None:
    limiter, who = Limiter(), key(requests_per_min=3)
    for _ in range(3):
        limiter.admit(who, Size(1), 10.5)
    error = refused(limiter, who, now=20.0)
    assert "key `k` has asked 3 times in a minute: its limit is 3 requests a minute" in error.message
    assert error.limit == "key_requests" and 51 <= error.retry_after_s <= 52
    assert limiter.admit(who, Size(1), 20.0 + error.retry_after_s)


def test_tokens_are_taken_by_estimate_and_settled_with_the_truth() -> None:
    limiter, who = Limiter(), key(tokens_per_min=100)
    first = limiter.admit(who, Size(90), 0.0)
    assert "and this request may take 20: its limit is 100 tokens a minute" in refused(limiter, who, Size(20)).message
    first.settle(30, 5.0)
    second = limiter.admit(who, Size(70), 6.0)
    second.settle(95, 7.0)  # more than was expected: nothing more until the first has left the window
    error = refused(limiter, who, Size(5), 8.0)
    assert limiter.admit(who, Size(5), 8.0 + error.retry_after_s)


def test_a_request_larger_than_a_minute_can_never_be_let_in() -> None:
    limiter, who = Limiter(), key(tokens_per_min=100)
    with pytest.raises(UsageError, match="asks for 101 tokens: key `k` may take 100 a minute"):
        limiter.admit(who, Size(101, least=101), 0.0)
    limiter.admit(who, Size(500), 0.0)  # only expected: it may have a minute's tokens, and gets all of them
    refused(limiter, who, Size(1))


def test_requests_at_once() -> None:
    limiter, who = Limiter(), key(concurrency=2)
    running = [limiter.admit(who, Size(1), 0.0) for _ in range(2)]
    error = refused(limiter, who)
    assert "has 2 requests open: its limit is 2 at once" in error.message and error.retry_after_s >= 1
    running[0].settle(1, 1.0)
    running[0].settle(1, 1.0)  # a second time changes nothing
    limiter.admit(who, Size(1), 1.0)
    refused(limiter, who, now=1.0)


def test_all_limits_or_none() -> None:
    limiter = Limiter()
    tenant = Party("tenant", "t", Limits(requests_per_min=1))
    limiter.admit([*key("a", requests_per_min=9, tokens_per_min=100), tenant], Size(50), 0.0)
    other = [*key("b", requests_per_min=9, tokens_per_min=100, concurrency=1), tenant]
    error = refused(limiter, other, Size(50))
    assert error.limit == "tenant_requests"
    admission = limiter.admit(other[:1], Size(100), 0.0)  # what was refused has taken nothing
    assert admission.headers(0.0)["x-ratelimit-remaining-requests"] == "8"


def test_headers_are_openais_and_of_whoever_has_least_left() -> None:
    limiter = Limiter()
    of_key = parties({**KEY, "limits": {"requests_per_min": 60, "tokens_per_min": 1000}})
    who = [*of_key, Party("service", "s", Limits(tokens_per_min=500))]
    admission = limiter.admit(who, Size(100), 0.5)
    assert admission.headers(0.5) == {
        **{"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59"},
        **{"x-ratelimit-reset-requests": "1m1s", "x-ratelimit-reset-tokens": "1m1s"},
        **{"x-ratelimit-limit-tokens": "500", "x-ratelimit-remaining-tokens": "400"},
    }
    told = errors.headers(refused(limiter, who, Size(450), 2.0))
    assert told["Retry-After"] == "60" and told["x-ratelimit-remaining-tokens"] == "400"
    assert errors.describe(refused(limiter, who, Size(450), 2.0))["error"]["code"] == "rate_limit_exceeded"
    assert limiter.admit(parties(KEY), Size(5), 0.5).headers(0.5) == {}


def test_the_front_door_holds_so_much_and_no_more() -> None:
    limiter = Limiter(max_requests=2, max_bytes=100)
    first = limiter.admit([], Size(1, body_bytes=80), 0.0)
    with pytest.raises(CapacityError, match="80 bytes of requests"):
        limiter.admit([], Size(1, body_bytes=30), 0.0)
    limiter.admit([], Size(1), 0.0)
    with pytest.raises(CapacityError, match="holds 2 requests"):
        limiter.admit([], Size(1), 0.0)
    first.settle(1, 1.0)
    limiter.admit([], Size(1, body_bytes=100), 1.0)


def test_those_who_are_gone_are_forgotten() -> None:
    limiter = Limiter()
    for number in range(1000):
        limiter.admit(key(str(number), requests_per_min=5), Size(1), 0.0).settle(1, 0.0)
    limiter.admit(key("later", requests_per_min=5), Size(1), 200.0)
    assert len(limiter._accounts) == 1


class Traffic:
    """Requests of a few keys of one tenant, as they come; and what a minute has had, counted one by one."""

    def __init__(self) -> None:
        self.limiter = Limiter()
        self.tenant = Party("tenant", "t", Limits(requests_per_min=25, tokens_per_min=400, concurrency=6))
        own = Limits(requests_per_min=10, tokens_per_min=200, concurrency=3)
        self.keys = [Party("key", str(n), own) for n in range(3)]
        self.running: list[tuple[Admission, Party, int, float]] = []
        self.done: list[tuple[Party, float, int]] = []
        self.now = 500.0

    def ask(self, who: Party, tokens: int) -> None:
        try:
            admission = self.limiter.admit([who, self.tenant], Size(tokens), self.now)
        except RateLimitError as error:
            if not error.limit.endswith("concurrency"):
                self.enough(who, tokens, error.retry_after_s)
            return
        self.running.append((admission, who, tokens, self.now))

    def enough(self, who: Party, tokens: int, wait_s: float) -> None:
        """Whoever waits as long as told is not told to wait for a minute's sake again."""
        self.now += wait_s
        with suppress(RateLimitError):
            self.limiter.admit([who, self.tenant], Size(tokens), self.now).settle(0, self.now)
            self.done.append((who, self.now, 0))
            return
        assert refused(self.limiter, [who, self.tenant], Size(tokens), self.now).limit.endswith("concurrency")

    def end(self, place: int, share: float) -> None:
        admission, who, tokens, at = self.running.pop(place % len(self.running))
        admission.settle(int(tokens * share), self.now)
        self.done.append((who, at, int(tokens * share)))

    def check(self) -> None:
        everything = [*self.done, *((who, at, tokens) for _, who, tokens, at in self.running)]
        for party in (*self.keys, self.tenant):
            own = [one for one in everything if one[0] == party or party == self.tenant]
            for _, end, _ in own:
                minute = [tokens for _, at, tokens in own if end - 60 <= at <= end]
                assert len(minute) <= (party.limits.requests_per_min or 0)
                assert sum(minute) <= (party.limits.tokens_per_min or 0)
            is_open = sum(who == party or party == self.tenant for _, who, _, _ in self.running)
            assert is_open <= (party.limits.concurrency or 0)


STEP = st.tuples(
    st.sampled_from([0.0, 0.3, 2.0, 20.0]), st.integers(0, 5), st.integers(1, 120), st.floats(0, 1, allow_nan=False)
)


@given(st.lists(STEP, min_size=1, max_size=50))
def test_no_minute_has_more_than_its_limits_whatever_is_settled_when(
    steps: list[tuple[float, int, int, float]],
) -> None:
    """Refunds included: a minute's requests, with what they took in truth, never exceed a limit."""
    traffic = Traffic()
    for gap, which, tokens, share in steps:
        traffic.now += gap
        if which < len(traffic.keys):
            traffic.ask(traffic.keys[which], tokens)
        elif traffic.running:
            traffic.end(tokens, share)
    traffic.check()
    while traffic.running:
        traffic.end(0, 1.0)
    assert traffic.limiter.requests == traffic.limiter.held_bytes == 0
    assert all(account.open == 0 for account in traffic.limiter._accounts.values())
