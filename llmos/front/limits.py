"""Who may ask how much: requests and tokens a minute, requests at once; of a key, its tenant and a service.

A request is let in with the tokens that it may take, and settled with those that it took. Pure: times are given, in
seconds of one clock that never goes back. One event loop uses a :class:`Limiter`; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmos.errors import CapacityError, RateLimitError, UsageError
from llmos.front.windows import Window

MAX_HELD_REQUESTS = 4096
MAX_HELD_BYTES = 512 * 2**20
_SWEEP_S = 60.0
_FIRST_GUESS_S = 1.0
"""How long requests take, until the first has ended."""
_FADING = 0.05


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that somebody may ask for; None: no limit."""

    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    concurrency: int | None = None

    @property
    def any(self) -> bool:
        return not (self.requests_per_min is self.tokens_per_min is self.concurrency is None)


@dataclass(frozen=True, slots=True)
class Party:
    """Whose limits these are: ``kind`` is key, tenant or service."""

    kind: str
    name: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class Size:
    """What a request may take. ``tokens`` of prompt and answers are expected, ``least`` are certain to be asked for;
    ``body_bytes`` are held while it runs."""

    tokens: int
    least: int = 0
    body_bytes: int = 0


class _Account:
    """What a party has taken lately and has open."""

    __slots__ = ("open", "requests", "tokens")

    def __init__(self) -> None:
        self.requests, self.tokens, self.open = Window(), Window(), 0

    def fits(self, limits: Limits, size: Size, now: float) -> bool:
        """Whether a request of ``size`` breaks none of ``limits``."""
        open, requests, tokens = limits.concurrency, limits.requests_per_min, limits.tokens_per_min
        return (
            (open is None or self.open < open)
            and (requests is None or self.requests.look(now) < requests)
            and (tokens is None or self.tokens.look(now) + min(size.tokens, tokens) <= tokens)
        )

    def idle(self, now: float) -> bool:
        return not (self.open or self.requests.empty_s(now) or self.tokens.empty_s(now))


@dataclass(slots=True)
class _Share:
    """What a request has of an account: so many tokens, taken in that second."""

    account: _Account
    limits: Limits
    tokens: int
    second: int


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A limit that is reached; ``wait_s`` is when it will not be any more, if that can be told."""

    wait_s: float
    kind: str
    limit: str
    most: int
    what: str


_UNITS = {"requests": "requests a minute", "tokens": "tokens a minute", "concurrency": "at once"}


class Limiter:
    """Keeps the accounts of everybody with limits, and how much the front door holds at once."""

    def __init__(self, max_requests: int = MAX_HELD_REQUESTS, max_bytes: int = MAX_HELD_BYTES) -> None:
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self._accounts: dict[tuple[str, str], _Account] = {}
        self._swept_s = 0.0
        self.requests = self.held_bytes = 0
        self.request_s = _FIRST_GUESS_S

    def admit(self, parties: Sequence[Party], size: Size, now: float) -> Admission:
        """Let a request in, for all of ``parties`` or for none. Whoever gets the admission settles it.

        Raises RateLimitError, with ``retry_after_s``, when a limit is reached; CapacityError when the front door is
        full; UsageError for a request that is larger than a minute's tokens and could never be let in.
        """
        self._check_room(size)
        found, fits = list[tuple[Party, _Account]](), True
        for party in parties:
            if party.limits.any:
                _check_size(party, size)
                account = self._account(party)
                fits = fits and account.fits(party.limits, size, now)
                found.append((party, account))
        if not fits:
            raise self._refuse(found, size, now)
        shares = [self._take(party.limits, account, size, now) for party, account in found]
        self.requests += 1
        self.held_bytes += size.body_bytes
        self._sweep(now)
        return Admission(self, shares, size, now)

    def _refuse(self, found: Sequence[tuple[Party, _Account]], size: Size, now: float) -> RateLimitError:
        refusals = [refusal for party, account in found for refusal in _refusals(party, account, size, now)]
        worst = max(refusals, key=lambda refusal: refusal.wait_s)
        wait_s = max(1.0, self.request_s / worst.most) if worst.limit == "concurrency" else worst.wait_s
        return RateLimitError(
            f"{worst.what}: its limit is {worst.most} {_UNITS[worst.limit]}",
            hint=f"Ask again in {_duration(wait_s)}.",
            retry_after_s=wait_s,
            limit=f"{worst.kind}_{worst.limit}",
            headers=_rate_headers([(party.limits, account) for party, account in found], now),
        )

    def _check_room(self, size: Size) -> None:
        full = self.requests >= self._max_requests
        if full or self.held_bytes + size.body_bytes > self._max_bytes:
            held = f"{self.requests} requests" if full else f"{self.held_bytes} bytes of requests"
            raise CapacityError(
                f"the front door holds {held}, as many as it may", hint="Ask again soon.", retry_after_s=1.0
            )

    def _account(self, party: Party) -> _Account:
        name = party.kind, party.name
        return self._accounts.get(name) or self._accounts.setdefault(name, _Account())

    def _take(self, limits: Limits, account: _Account, size: Size, now: float) -> _Share:
        tokens = size.tokens if limits.tokens_per_min is None else min(size.tokens, limits.tokens_per_min)
        account.open += 1
        account.requests.take(1, now)
        return _Share(account, limits, tokens, account.tokens.take(tokens, now))

    def _sweep(self, now: float) -> None:
        """Forget those who have nothing open and asked for nothing lately."""
        if now - self._swept_s >= _SWEEP_S:
            self._swept_s = now
            self._accounts = {name: one for name, one in self._accounts.items() if not one.idle(now)}


@dataclass(slots=True)
class Admission:
    """A request that was let in."""

    _limiter: Limiter
    _shares: list[_Share]
    _size: Size
    _began: float
    _settled: bool = field(default=False)

    @property
    def expected(self) -> int:
        """The tokens that it may take."""
        return self._size.tokens

    def settle(self, tokens: int, now: float) -> None:
        """The request is over and took ``tokens``: 0 if no replica began with it. A second time changes nothing.

        What it did not take is given back to the minute in which it began; what it took beyond what was expected counts
        from now on.
        """
        if self._settled:
            return
        self._settled = True
        self._limiter.requests -= 1
        self._limiter.held_bytes -= self._size.body_bytes
        self._limiter.request_s += _FADING * (now - self._began - self._limiter.request_s)
        for share in self._shares:
            share.account.open -= 1
            if tokens < share.tokens:
                share.account.tokens.give_back(share.tokens - tokens, share.second, now)
            elif tokens > share.tokens:
                share.account.tokens.take(tokens - share.tokens, now)

    def headers(self, now: float) -> dict[str, str]:
        """OpenAI's ``x-ratelimit-*``, of whoever has least left; none without limits."""
        return _rate_headers([(share.limits, share.account) for share in self._shares], now)


def _check_size(party: Party, size: Size) -> None:
    most = party.limits.tokens_per_min
    if most is not None and size.least > most:
        raise UsageError(
            f"the request asks for {size.least} tokens: {party.kind} `{party.name}` may take {most} a minute",
            hint="Ask for fewer (`max_tokens`), or shorten the prompt.",
            param="max_tokens",
        )


def _refusals(party: Party, account: _Account, size: Size, now: float) -> list[_Refusal]:
    """The limits of ``party`` that a request of ``size`` would break."""
    limits, whose, found = party.limits, f"{party.kind} `{party.name}`", list[_Refusal]()
    if limits.concurrency is not None and account.open >= limits.concurrency:
        what = f"{whose} has {account.open} requests open"
        found.append(_Refusal(0.0, party.kind, "concurrency", limits.concurrency, what))
    most = limits.requests_per_min
    if most is not None and (wait_s := account.requests.wait_s(1, most, now)) > 0:
        what = f"{whose} has asked {account.requests.taken} times in a minute"
        found.append(_Refusal(wait_s, party.kind, "requests", most, what))
    most = limits.tokens_per_min
    if most is not None and (wait_s := account.tokens.wait_s(min(size.tokens, most), most, now)) > 0:
        what = f"{whose} has taken {account.tokens.taken} tokens in a minute, and this request may take {size.tokens}"
        found.append(_Refusal(wait_s, party.kind, "tokens", most, what))
    return found


def _rate_headers(found: Sequence[tuple[Limits, _Account]], now: float) -> dict[str, str]:
    """https://platform.openai.com/docs/guides/rate-limits, "Rate limits in headers"."""
    told: dict[str, str] = {}
    of_requests = [(one.requests_per_min, account.requests) for one, account in found]
    of_tokens = [(one.tokens_per_min, account.tokens) for one, account in found]
    _tell(told, _OF_REQUESTS, of_requests, now)
    _tell(told, _OF_TOKENS, of_tokens, now)
    return told


_OF_REQUESTS, _OF_TOKENS = (
    tuple(f"x-ratelimit-{which}-{what}" for which in ("limit", "remaining", "reset")) for what in ("requests", "tokens")
)


def _tell(told: dict[str, str], names: Sequence[str], found: Sequence[tuple[int | None, Window]], now: float) -> None:
    """Limit, what remains and when all of it does, of whoever has least left."""
    least = None
    for most, window in found:
        if most is not None:
            left = max(0, most - window.look(now)), most
            if least is None or left < least:
                least, empty_s = left, window.empty_s(now)
    if least is not None:
        told[names[0]], told[names[1]], told[names[2]] = str(least[1]), str(least[0]), _duration(empty_s)


def _duration(seconds: float) -> str:
    """As OpenAI writes it: ``1s``, ``6m0s``."""
    minutes, rest = divmod(-int(-seconds // 1), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def parties(key: Mapping[str, Any]) -> list[Party]:
    """Whose limits a request meets, but for its service's: those of its ``key`` (as the control module's ``authorize``
    answers it) and of the key's tenant, if they have some."""
    found = [
        Party("key", key["id"], Limits(**key["limits"])),
        Party("tenant", key["tenant"], Limits(**key["tenant_limits"])),
    ]
    return [party for party in found if party.limits.any]
