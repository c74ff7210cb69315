"""What computes behind an engine, whatever it computes, and how it is started."""

from __future__ import annotations

from typing import Any, Protocol

from llmos.infer.encoder_options import EncoderOptions
from llmos.infer.launch import Launch
from llmos.infer.messages import Ready
from llmos.infer.options import EngineOptions


class Core(Protocol):
    """Works at many requests at once, step by step, in one thread."""

    @property
    def busy(self) -> bool:
        """Whether :meth:`step` has something to do."""
        ...

    def add(self, request: Any, /) -> None:
        """One more, of the kind that this core answers. What is wrong with it is an outcome."""
        ...

    def cancel(self, id: str, /) -> None:
        """Forget a request; nothing happens if there is none."""
        ...

    def step(self) -> list[Any]:
        """What this step brought."""
        ...

    def overdue_s(self) -> float | None:
        """How long the step in progress has taken, if that is so long that it hangs. For another thread to ask."""
        ...

    def stats(self) -> dict[str, Any]:
        """How it is doing, JSON-able."""
        ...

    def close(self) -> None:
        """End what it has started."""
        ...


def start(options: EngineOptions | EncoderOptions, launch: Launch) -> tuple[Core, Ready]:
    """The core for ``options``, its model loaded. Loads torch, which nobody else on this side needs.

    Raises ModelError, UsageError, OutOfMemoryError, and EngineError if the first step fails.
    """
    if isinstance(options, EncoderOptions):
        from llmos.infer.encoder_build import build_encoder

        return build_encoder(options)
    from llmos.infer.build import build

    return build(options, launch)
