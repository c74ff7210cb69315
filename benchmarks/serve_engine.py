"""An engine of ours without its server: requests go in, events come out, in this process."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serve_load import NEW_TOKENS, Load, Prompt
from llmos.infer.local import LocalEngine
from llmos.infer.request import GenerationRequest, SamplingParams

CACHE_BYTES = 1 << 30
"""For the key-value cache, as vLLM gets it: several engines are in memory at once."""

_ids = itertools.count()


class InProcess:
    """A :class:`benchmarks.serve_contenders.Contender`. ``options`` are LocalEngine's; its core has a process."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.engine = LocalEngine(directory, process=True, **{"memory_bytes": CACHE_BYTES, **options})
        self.answers: list[tuple[int, ...]] = []

    def run(self, asked: Sequence[Prompt], concurrency: int, new: int = NEW_TOKENS) -> Load:
        """Answer ``asked``, ``concurrency`` at once, with ``new`` tokens each; ``answers`` keeps them, in order."""
        return asyncio.run(self._run(asked, concurrency, new))

    def close(self) -> None:
        """End the engine."""
        self.engine.close()

    async def _run(self, asked: Sequence[Prompt], concurrency: int, new: int) -> Load:
        waiting = list(reversed(list(enumerate(asked))))
        first_s: list[float] = []
        gaps_s: list[float] = []
        answers: dict[int, tuple[int, ...]] = {}

        async def client() -> None:
            while waiting:
                number, prompt = waiting.pop()
                tokens, arrivals_s = await self._ask(prompt, new)
                answers[number] = tokens
                first_s.append(arrivals_s[0])
                gaps_s.extend(later - before for before, later in itertools.pairwise(arrivals_s))

        began = time.perf_counter()
        await asyncio.gather(*[client() for _ in range(concurrency)])
        wall_s = time.perf_counter() - began
        self.answers = [answers[number] for number in range(len(asked))]
        return Load(new * len(asked), wall_s, tuple(first_s), tuple(gaps_s))

    async def _ask(self, prompt: Prompt, new: int) -> tuple[tuple[int, ...], list[float]]:
        """The tokens of the answer, and when they came, in seconds from asking."""
        sampling = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True)
        began, arrivals_s = time.perf_counter(), []
        tokens: tuple[int, ...] = ()
        request = GenerationRequest(f"benchmark-{next(_ids)}", tuple(prompt), sampling)
        async for event in self.engine.generate(request):
            arrivals_s.append(time.perf_counter() - began)
            tokens += event.token_ids
        return tokens, arrivals_s
