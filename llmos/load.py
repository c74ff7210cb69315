"""An open-loop load of requests on ``/v1/completions``, and how soon they were answered.

Open loop: each request is sent at its own time, whether or not earlier ones have been answered. A server that is too
slow then shows it; a closed loop, in which answered clients ask again, would wait for it and hide that (Schroeder et
al., Open Versus Closed: A Cautionary Tale, NSDI 2006).
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from llmos.settings import Connection

PERCENTILES = (50, 90, 95, 99)
_TOKENS = range(10, 250)  # ids that every vocabulary has, none of them special in those that we know


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: when it is sent (seconds after the first), tokens of its prompt and of its answer."""

    at_s: float
    prompt: int
    answer: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request: how late it was sent, seconds to the first token and to the last one, its tokens; or
    ``error``, in few words."""

    ask: Ask
    late_s: float
    first_s: float = math.nan
    total_s: float = math.nan
    tokens: int = 0
    error: str = ""

    @property
    def token_s(self) -> float:
        """Seconds for each token after the first; NaN where there was none."""
        return (self.total_s - self.first_s) / (self.tokens - 1) if self.tokens > 1 else math.nan


def synthetic(count: int, prompt: int, answer: int, seed: int) -> list[Ask]:
    """So many requests at times of a Poisson process of one a second, with exponentially distributed lengths."""
    rng = random.Random(seed)
    at_s, asks = 0.0, []
    for _ in range(count):
        asks.append(Ask(at_s, 1 + round(rng.expovariate(1 / prompt)), 1 + round(rng.expovariate(1 / answer))))
        at_s += rng.expovariate(1.0)
    return asks


def paced(asks: Sequence[Ask], per_s: float | None, most_prompt: int, most_answer: int) -> list[Ask]:
    """``asks`` with their times stretched so that ``per_s`` come each second on average (None: as they are), and no
    lengths beyond those given."""
    span_s = asks[-1].at_s if asks else 0.0
    stretch = 1.0 if per_s is None or not span_s else (len(asks) - 1) / per_s / span_s
    return [
        Ask(one.at_s * stretch, min(max(one.prompt, 1), most_prompt), min(max(one.answer, 1), most_answer))
        for one in asks
    ]


async def drive(
    connection: Connection, service: str, asks: Iterable[Ask], seed: int = 0, told: Callable[[], None] = lambda: None
) -> list[Outcome]:
    """Send each of ``asks`` at its time, and wait for all. ``told`` is called when one has ended."""
    headers = {"Authorization": f"Bearer {connection.key}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    timeout = httpx.Timeout(None, connect=30.0)
    async with httpx.AsyncClient(
        base_url=connection.url, headers=headers, limits=limits, timeout=timeout, trust_env=not connection.loopback
    ) as client:
        began_s, tasks = time.perf_counter(), list[asyncio.Task[Outcome]]()
        for number, ask in enumerate(asks):
            await asyncio.sleep(max(0.0, began_s + ask.at_s - time.perf_counter()))
            late_s = time.perf_counter() - began_s - ask.at_s
            rng = random.Random(seed * 1_000_003 + number)
            task = asyncio.create_task(_one(client, service, ask, late_s, rng.choices(_TOKENS, k=ask.prompt)))
            task.add_done_callback(lambda _: told())
            tasks.append(task)
        return list(await asyncio.gather(*tasks))


async def _one(client: httpx.AsyncClient, service: str, ask: Ask, late_s: float, prompt: list[int]) -> Outcome:
    body = {"model": service, "prompt": prompt, "max_tokens": ask.answer, "stream": True, "ignore_eos": True}
    body["stream_options"] = {"include_usage": True}
    began_s, first_s, tokens = time.perf_counter(), math.nan, 0
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                await response.aread()
                return Outcome(ask, late_s, error=f"status {response.status_code}")
            async for line in response.aiter_lines():
                event = _event(line)
                if "error" in event:
                    return Outcome(ask, late_s, error=f"broke off: {event['error'].get('code')}")
                if event.get("choices") and math.isnan(first_s):
                    first_s = time.perf_counter() - began_s
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    except httpx.HTTPError as error:
        return Outcome(ask, late_s, error=type(error).__name__)
    if math.isnan(first_s):
        return Outcome(ask, late_s, error="no token came")
    return Outcome(ask, late_s, first_s, time.perf_counter() - began_s, tokens)


def _event(line: str) -> dict[str, Any]:
    """The JSON of an event; empty for comments, the end, and the lines between events."""
    found: dict[str, Any] = json.loads(line[6:]) if line.startswith("data: {") else {}
    return found


def summary(outcomes: Sequence[Outcome], first_token_s: float | None, token_s: float | None) -> dict[str, Any]:
    """Percentiles in seconds of what was answered, rates per second, and ``goodput``: what was answered within the
    promises, as a share and a rate. A request that failed kept none."""
    good = [one for one in outcomes if not one.error]
    span_s = max((one.ask.at_s + one.late_s + one.total_s for one in good), default=0.0) or math.nan
    kept = [one for one in good if _kept(one, first_token_s, token_s)]
    share = len(kept) / len(outcomes) if outcomes else math.nan
    return {
        **{
            "requests": len(outcomes),
            "answered": len(good),
            "errors": dict(Counter(o.error for o in outcomes if o.error)),
        },
        **{"seconds": _told(span_s), "requests_per_s": _told(len(good) / span_s)},
        **{"tokens_per_s": _told(sum(one.tokens for one in good) / span_s)},
        "first_token_s": percentiles([one.first_s for one in good]),
        "token_s": percentiles([one.token_s for one in good]),
        "total_s": percentiles([one.total_s for one in good]),
        "late_s": percentiles([one.late_s for one in outcomes]),
        "goodput": {"share": _told(share), "requests_per_s": _told(len(kept) / span_s)},
    }


def _kept(one: Outcome, first_token_s: float | None, token_s: float | None) -> bool:
    in_time = first_token_s is None or one.first_s <= first_token_s
    return in_time and (token_s is None or not one.token_s > token_s)  # an answer of one token has none after it


def percentiles(values: Iterable[float]) -> dict[str, float | None]:
    """``{p50, p90, p95, p99, max}``, each the smallest value that so many percent do not exceed (nearest rank)."""
    known = sorted(value for value in values if not math.isnan(value))
    found = {f"p{p}": known[math.ceil(p / 100 * len(known)) - 1] if known else math.nan for p in PERCENTILES}
    return {name: _told(value) for name, value in (found | {"max": known[-1] if known else math.nan}).items()}


def _told(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return None if math.isnan(value) else round(value, 6)
