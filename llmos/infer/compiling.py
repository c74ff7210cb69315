"""Requests whose grammars are being compiled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TYPE_CHECKING

from llmos.errors import EngineError, LlmosError
from llmos.infer.grammar import Grammars, Matcher
from llmos.infer.messages import CoreRequest

if TYPE_CHECKING:
    from llmos.models import Tokenizer

_log = logging.getLogger(__name__)


class Compiling:
    """``tokenizer`` is called for the first grammar, in one of the threads in which they are compiled."""

    def __init__(self, tokenizer: Callable[[], Tokenizer]) -> None:
        self._tokenizer = tokenizer
        self._grammars: Grammars | None = None
        self._futures: dict[str, tuple[CoreRequest, Future[Matcher]]] = {}

    def __len__(self) -> int:
        return len(self._futures)

    def add(self, request: CoreRequest) -> None:
        """Compile its grammar."""
        grammar = request.sampling.grammar
        assert grammar is not None
        if self._grammars is None:
            self._grammars = Grammars(self._tokenizer, request.ends)
        self._futures[request.id] = request, self._grammars.start(grammar, request.tenant)

    def remove(self, id: str) -> None:
        """Forget the request; nothing happens if there is none."""
        _, future = self._futures.pop(id, (None, None))
        if future is not None:
            future.cancel()  # before its turn: nothing is compiled

    def take(self, wait_s: float) -> list[tuple[CoreRequest, Matcher | LlmosError]]:
        """Those that are ready, or what is wrong with them; wait so long for one."""
        if not self._futures:
            return []
        wait([future for _, future in self._futures.values()], wait_s, FIRST_COMPLETED)
        done = [(request, future) for request, future in self._futures.values() if future.done()]
        for request, _ in done:
            del self._futures[request.id]
        return [(request, _result(future)) for request, future in done]

    def close(self) -> None:
        """End the threads, when they are done with what they compile."""
        if self._grammars is not None:
            self._grammars.close()


def _result(future: Future[Matcher]) -> Matcher | LlmosError:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, LlmosError):
        return error
    _log.error("a grammar could not be compiled", exc_info=error)  # a panic of llguidance is no Exception
    return EngineError(f"the request failed: {type(error).__name__}: {error}", hint="See the log.")
