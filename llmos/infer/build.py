"""From a directory and options to a core."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from llmos import models
from llmos.errors import UnsupportedModelError, UsageError
from llmos.infer.core import EngineCore, Limits
from llmos.infer.launch import Launch, launch_here
from llmos.infer.lookup import PromptLookup
from llmos.infer.makers import Makers, context_length_of, counts, dtype_of, measured
from llmos.infer.messages import Ready
from llmos.infer.options import EngineOptions
from llmos.infer.sampling import Sampler
from llmos.infer.speculative import Speculation

_log = logging.getLogger(__name__)


def build(options: EngineOptions, launch: Launch = launch_here) -> tuple[EngineCore, Ready]:
    """Load the model; ``launch`` starts ranks. Raises ModelError, UsageError, OutOfMemoryError, and EngineError if the
    first step fails."""
    try:
        makers = Makers.of(options, launch)
    except UnsupportedModelError as error:
        return _the_slow_way(options, error)
    draft = makers.draft() if options.speculative and options.draft else None
    if draft is not None:
        makers, draft = makers.sharing_memory_with(draft)
    runner, better = makers.choose()
    core = EngineCore(
        runner,
        Limits(options.max_batch, options.token_budget, makers.context_length, options.prefix_cache),
        tokenizer=lambda: models.Tokenizer.load(options.model_dir),
        about={"dtype": str(makers.dtype).removeprefix("torch.")},
        speculation=_speculation(options, makers.config.vocab_size, draft) if options.speculative else None,
        better=better,
    )
    return core, Ready(runner.vocab_size, makers.context_length, makers.config.eos_token_ids, core.stats())


def _the_slow_way(options: EngineOptions, reason: UnsupportedModelError) -> tuple[EngineCore, Ready]:
    """By transformers, because of ``reason``. What only our own runners have is refused."""
    from llmos.infer.transformers_runner import TransformersRunner

    for name, nothing in (("tp", 1), ("pp", 1), ("speculative", 0), ("runner", "auto")):
        if getattr(options, name) != nothing:
            raise UsageError(f"`{name}` is not for a model that llmos does not compute itself: {reason}", param=name)
    directory, device = Path(options.model_dir), torch.device(options.device)
    dtype = dtype_of(options, directory, device)
    _log.warning("runner: transformers, the slow way, for llmos does not compute this model: %s", reason.message)
    runner = TransformersRunner(directory, dtype, device, options.max_batch)
    if device.type == "cpu":
        torch.set_num_threads(options.threads or measured(runner, counts(options)))
    context_length = context_length_of(options, runner.context_length)
    core = EngineCore(
        runner,
        Limits(options.max_batch, options.token_budget, context_length, prefix_cache=False),
        tokenizer=lambda: models.Tokenizer.load(directory),
        about={"dtype": str(dtype).removeprefix("torch.")},
    )
    return core, Ready(runner.vocab_size, context_length, runner.ends, core.stats())


def _speculation(options: EngineOptions, vocab_size: int, draft: Makers | None) -> Callable[[Sampler], Speculation]:
    if draft is None:
        return lambda _: Speculation(PromptLookup(), options.speculative)
    from llmos.infer.draft_model import DraftModel

    runner, longest = draft.native() if draft.native_ready(wait=True) else draft.torch(), draft.context_length
    return lambda sampler: Speculation(DraftModel(runner, sampler, vocab_size, longest), options.speculative)
