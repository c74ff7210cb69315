"""How an encoder computes: what a user may choose, checked before anything is loaded. Plain values; no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from llmos.errors import UsageError
from llmos.infer.options import DTYPES

_LEAST = {"threads": 1, "cores": 1, "max_batch": 1, "token_budget": 1, "context_length": 3, "max_wait_s": 0}


@dataclass(frozen=True, slots=True)
class EncoderOptions:
    """Raises UsageError, which names the option, for one that cannot be.

    ``dtype``, ``device``, ``threads`` and ``cores`` are those of :class:`llmos.infer.options.EngineOptions`. A batch
    has at most ``max_batch`` texts and, unless one text has more, ``token_budget`` tokens. ``context_length`` limits a
    text (default: what the model says; at most: what it has positions for). A batch that is not full waits for more
    texts until its oldest one has waited ``max_wait_s``.
    """

    model_dir: str | Path
    dtype: str = "auto"
    device: str = "cpu"
    threads: int | None = None
    cores: int | None = None
    max_batch: int = 64
    token_budget: int = 512
    context_length: int | None = None
    max_wait_s: float = 0.002

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"`dtype` is {self.dtype}: expected {', '.join(DTYPES)}", param="dtype")
        for name, least in _LEAST.items():
            if (value := getattr(self, name)) is not None and not least <= value < math.inf:
                raise UsageError(f"`{name}` is {value}: expected at least {least}", param=name)
