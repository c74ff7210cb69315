"""vLLM as the core of an engine: for the models, cards and features that our own core does not have.

It gets tokens and gives tokens; text, stop strings and queues are the engine's, as with our own core. What differs:
a seed stands for another answer, temperatures above 2 are refused, and tenants' weights mean nothing, for vLLM knows
priorities only. vLLM is an extra of llmos, imported when it is asked for. It reads its settings from the environment,
so that a process should have one such engine.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from llmos.cores import usable_cores
from llmos.errors import DeadlineError, EngineError, LlmosError, ModelError, UsageError
from llmos.infer.launch import Gang
from llmos.infer.link import REOPEN, RESTART, Link, Listener, failure
from llmos.infer.local import LocalEngine
from llmos.infer.messages import CoreRequest, Message, Outcome, Ready, Report
from llmos.infer.options import EngineOptions
from llmos.infer.vllm_request import (
    end_tokens,
    engine_arguments,
    outcome_of,
    prepare_environment,
    prompt_for,
    sampling_for,
)

WATCH_S = 1.0
"""How often to look whether vLLM's processes live."""
_INSTALL = "Install it: `pip install 'llmos[vllm]'`; docs/operations.md says how on a machine without a GPU."

_log = logging.getLogger(__name__)


class VllmEngine(LocalEngine):
    """A :class:`llmos.infer.local.LocalEngine` whose core is vLLM; ``options`` are the same, but for ``speculative``.

    Its core has processes of its own anyway. Raises UsageError when vLLM is not installed, too.
    """

    def _connect(self, options: EngineOptions, process: bool, gang: Gang | None) -> Link:
        return VllmLink(options, self)


class VllmLink:
    """vLLM's AsyncLLM in an event loop of its own. See :class:`llmos.infer.link.Link`.

    Raises UsageError when vLLM is not installed, or for an option that it has not. Starting takes it half a minute.
    """

    def __init__(self, options: EngineOptions, listener: Listener) -> None:
        if find_spec("vllm") is None:
            raise UsageError("vLLM is not installed, and `engine: vllm` needs it", hint=_INSTALL, param="engine")
        self._arguments, self._listener = engine_arguments(options), listener
        cores = options.cores or len(usable_cores())
        self._threads = options.threads or max(1, cores - 1)  # one is for vLLM's other processes, and for ours
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._outcomes: list[Outcome] = []
        self._begun: set[str] = set()
        self._failed: EngineError | None = None
        self._ready: Future[Ready] = Future()
        self._thread = threading.Thread(target=self._run, name="llmos-vllm", daemon=True)
        self._thread.start()

    def ready(self) -> Ready:
        """See :class:`llmos.infer.link.Link`. Raises ModelError for what vLLM cannot serve, EngineError."""
        return self._ready.result()

    def send(self, message: Message) -> None:
        """See :class:`llmos.infer.link.Link`."""
        self._call(self._take, message)

    def close(self) -> None:
        """See :class:`llmos.infer.link.Link`."""
        self._call(self._closing.set)
        self._thread.join()

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            _log.info("vLLM has ended: nothing more is sent to it")

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._live())
        finally:
            self._loop.close()

    async def _live(self) -> None:
        """From the start to the end, which everybody is told."""
        try:
            prepare_environment(self._threads)
            llm = import_module("vllm.v1.engine.async_llm").AsyncLLM
            self._llm = llm.from_engine_args(import_module("vllm").AsyncEngineArgs(**self._arguments))
            ready = self._what_it_can()
        except BaseException as error:
            self._ready.set_exception(_not_started(error, self._arguments["model"]))
            return
        self._ready.set_result(ready)
        end = await self._watch()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._llm.shutdown()
        self._listener.on_end(end)

    def _what_it_can(self) -> Ready:
        model = self._llm.model_config
        ends = frozenset(end_tokens(model))
        return Ready(int(model.get_vocab_size()), int(model.max_model_len), ends, self._stats())

    async def _watch(self) -> EngineError:
        """Returns why it is over, when it is."""
        while not self._llm.errored:
            try:
                await asyncio.wait_for(self._closing.wait(), WATCH_S)
            except TimeoutError:
                continue
            return self._failed or EngineError("the engine is closed", hint=REOPEN)
        what = f"vLLM has failed and answers no more: {self._llm.dead_error}"
        return EngineError(what, hint=RESTART)

    def _take(self, message: Message) -> None:
        if isinstance(message, CoreRequest):
            self._tasks[message.id] = self._loop.create_task(self._answer(message))
        elif message in self._tasks:
            self._tasks[message].cancel()

    async def _answer(self, request: CoreRequest) -> None:
        errors = import_module("vllm.exceptions")
        try:
            async with asyncio.timeout_at(request.deadline):
                await self._generate(request)
        except TimeoutError:
            what = "the answer was not complete by its deadline"
            self._tell(Outcome(request.id, error=DeadlineError(what, hint="Allow more time, or ask for less.")))
        except errors.VLLMClientError as error:
            refused = UsageError(f"vLLM refuses the request: {error}", hint="docs/operations.md says what differs.")
            self._tell(Outcome(request.id, error=refused))
        except Exception as error:
            _log.exception("vLLM failed at a request")
            if not self._llm.errored:  # else everybody is told
                what = f"vLLM failed at this request: {type(error).__name__}: {error}"
                self._tell(Outcome(request.id, error=EngineError(what, hint="The log has the traceback.")))
        finally:
            del self._tasks[request.id]
            self._begun.discard(request.id)

    async def _generate(self, request: CoreRequest) -> None:
        sampling, urgency = sampling_for(request), -request.priority  # of vLLM's priorities, small ones go first
        async for output in self._llm.generate(prompt_for(request), sampling, request.id, priority=urgency):
            self._begun.add(request.id)
            self._tell(outcome_of(request, output.outputs[0], output.num_cached_tokens or 0))

    def _tell(self, outcome: Outcome) -> None:
        """Report it, with all that comes in the same turn of the event loop."""
        if not self._outcomes:
            self._loop.call_soon(self._report)
        self._outcomes.append(outcome)

    def _report(self) -> None:
        outcomes, self._outcomes = self._outcomes, []
        try:
            self._listener.on_report(Report(outcomes, self._stats()))
        except Exception as error:  # nobody may wait for ever
            self._failed = failure(error)
            self._closing.set()

    def _stats(self) -> dict[str, Any]:
        """Requests without a first token count as waiting."""
        running = len(self._begun)
        return {"running": running, "waiting": len(self._tasks) - running, "engine": "vllm"}


def _not_started(error: BaseException, model_dir: str) -> LlmosError:
    if isinstance(error, ValueError):  # pydantic's as well
        return ModelError(f"vLLM cannot serve {model_dir}: {error}", hint="Use `engine: llmos`, or another model.")
    what = f"vLLM did not start: {type(error).__name__}: {error}"
    return EngineError(what, hint="Its log, above, has the reason.")
