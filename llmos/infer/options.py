"""How an engine computes: what a user may choose, checked before anything is loaded. Plain values; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmos.errors import UsageError

DTYPES = ("auto", "float32", "bfloat16")
RUNNERS = ("auto", "native", "torch")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Raises UsageError, which names the option, for one that cannot be.

    ``dtype`` auto is bfloat16 where the hardware multiplies it. ``threads`` None is found by measurement,
    among numbers up to ``cores`` (default: those this process may use); for ranks it is their share of ``cores``.
    ``max_batch`` sequences run at once; a step computes at most ``token_budget`` tokens of them. ``context_length``
    limits prompt and answer together (default, and at most: the model's). ``memory_bytes`` is for the key-value cache
    (default: from what is free). ``tp`` × ``pp`` ranks share the model. ``speculative`` tokens are guessed per step
    (0: none): by the model in ``draft``, or else by looking up what followed the same words before. ``host`` is this
    machine's address where ranks reach it that somebody else starts (None: they are started here).
    """

    model_dir: str | Path
    dtype: str = "auto"
    device: str = "cpu"
    threads: int | None = None
    cores: int | None = None
    max_batch: int = 64
    context_length: int | None = None
    memory_bytes: int | None = None
    token_budget: int = 512
    prefix_cache: bool = True
    runner: str = "auto"
    tp: int = 1
    pp: int = 1
    speculative: int = 0
    draft: str | Path | None = None
    host: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("dtype", DTYPES), ("runner", RUNNERS)):
            if (found := getattr(self, name)) not in allowed:
                raise UsageError(f"`{name}` is {found}: expected {', '.join(allowed)}", param=name)
        for name, least in _LEAST.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise UsageError(f"`{name}` is {value}: expected at least {least}", param=name)
        if self.token_budget < self.max_batch:
            what = f"`token_budget` is {self.token_budget}: expected at least `max_batch` ({self.max_batch})"
            raise UsageError(f"{what}, a token for every running sequence", param="token_budget")
        if self.draft is not None and not self.speculative:
            raise UsageError("`draft` needs `speculative`: expected how many tokens it guesses", param="speculative")


_LEAST = {
    "threads": 1,
    "cores": 1,
    "max_batch": 1,
    "context_length": 2,
    "memory_bytes": 1,
    "token_budget": 1,
    "tp": 1,
    "pp": 1,
    "speculative": 0,
}
