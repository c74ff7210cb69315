"""The load of a benchmark of serving: prompts of known lengths over HTTP, streamed, every arrival timed.

A closed loop: ``concurrency`` clients, each with its next request as soon as the last one is answered. aiohttp, whose
parser is compiled, because the load shares the machine's cores with what it measures.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

PROMPT_TOKENS, NEW_TOKENS = 64, 32
_WORDS = 256, 40_000
"""Tokens of prompts: whole words of every model's tokenizer."""
_TIMEOUT_S = 300.0
_DATA, _DONE = b"data: ", b"[DONE]"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server of OpenAI's API, and the name and key it wants."""

    url: str
    model: str
    key: str = "none"


@dataclass(frozen=True, slots=True)
class Load:
    """What one load came to: times in seconds, from sending a request."""

    tokens: int
    wall_s: float
    first_s: tuple[float, ...] = ()
    gaps_s: tuple[float, ...] = ()

    @property
    def rate(self) -> float:
        """Tokens generated per second."""
        return self.tokens / self.wall_s

    @property
    def ttft_s(self) -> float:
        """Time to first token, median."""
        return statistics.median(self.first_s)

    @property
    def itl_s(self) -> float:
        """Time between two pieces of an answer, median."""
        return statistics.median(self.gaps_s)


Prompt = Sequence[int]


def prompts(count: int, length: int = PROMPT_TOKENS, seed: int = 0, common: int = 0) -> list[list[int]]:
    """``count`` prompts of ``length`` random tokens; the first ``common`` tokens are the same in all."""
    made = random.Random(seed)
    shared = [made.randrange(*_WORDS) for _ in range(common)]
    return [[*shared, *(made.randrange(*_WORDS) for _ in range(length - common))] for _ in range(count)]


def load(endpoint: Endpoint, asked: Sequence[Prompt], concurrency: int, new: int = NEW_TOKENS) -> Load:
    """Send ``asked``, ``concurrency`` at once, each for ``new`` tokens. Raises RuntimeError for a wrong answer."""
    return asyncio.run(_load(endpoint, asked, concurrency, new))


async def _load(endpoint: Endpoint, asked: Sequence[Prompt], concurrency: int, new: int) -> Load:
    waiting = list(reversed(asked))
    first_s: list[float] = []
    gaps_s: list[float] = []

    async def client(session: aiohttp.ClientSession) -> None:
        while waiting:
            arrivals_s = await _ask(session, endpoint, waiting.pop(), new)
            first_s.append(arrivals_s[0])
            gaps_s.extend(later - before for before, later in itertools.pairwise(arrivals_s))

    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=timeout, headers=headers
    ) as session:
        began = time.perf_counter()
        await asyncio.gather(*[client(session) for _ in range(concurrency)])
        wall_s = time.perf_counter() - began
    return Load(new * len(asked), wall_s, tuple(first_s), tuple(gaps_s))


async def _ask(session: aiohttp.ClientSession, endpoint: Endpoint, prompt: Prompt, new: int) -> list[float]:
    """When pieces of the answer came, in seconds from sending."""
    body: dict[str, Any] = {"model": endpoint.model, "prompt": list(prompt), "max_tokens": new, "temperature": 0}
    body |= {"ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
    began, arrivals_s, usage = time.perf_counter(), [], None
    async with session.post(f"{endpoint.url}/v1/completions", json=body) as answer:
        if answer.status != 200:
            raise RuntimeError(f"status {answer.status}: {await answer.text()}")
        async for line in answer.content:
            if not line.startswith(_DATA) or _DONE in line:
                continue
            if b'"choices":[]' in line.replace(b" ", b""):
                usage = json.loads(line.removeprefix(_DATA))["usage"]
            else:
                arrivals_s.append(time.perf_counter() - began)
    if usage is None or usage["completion_tokens"] != new:
        raise RuntimeError(f"expected {new} tokens, found {usage}")
    return arrivals_s
