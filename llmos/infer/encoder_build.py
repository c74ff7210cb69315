"""From a directory and options to an encoder's core."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from llmos.errors import EngineError, UsageError
from llmos.files import read_json
from llmos.infer.dtypes import pick_dtype
from llmos.infer.encoder_core import EncoderCore
from llmos.infer.encoder_messages import Text, Vectors
from llmos.infer.encoder_options import EncoderOptions
from llmos.infer.messages import Ready
from llmos.infer.native.threads import candidates, fastest
from llmos.models.encoder import Encoder
from llmos.models.encoder_config import EncoderConfig

TRIAL_TEXTS, TRIAL_TOKENS = 8, 32
"""What threads are measured with: many short texts, as most are."""

_log = logging.getLogger(__name__)


def build_encoder(options: EncoderOptions) -> tuple[EncoderCore, Ready]:
    """Load the model. Raises ModelError, UsageError, and EngineError if the first batch fails."""
    longest = max_tokens_of(options, EncoderConfig.load(options.model_dir))
    device = torch.device(options.device)
    dtype = _dtype(options, device)
    encoder = Encoder(options.model_dir, dtype, device)

    def encode(texts: Sequence[Text]) -> Vectors:
        return np.asarray(encoder.vectors(texts).cpu().numpy(), dtype=np.float32)

    text = (0,) * min(TRIAL_TOKENS, longest)
    try:
        threads = _set_threads(options, lambda: encode([text] * TRIAL_TEXTS)) if device.type == "cpu" else None
        first_1D = encode([text])
    except RuntimeError as error:
        raise EngineError(f"the first batch failed: {error}", hint="Check `device` and `dtype`.") from error
    if not np.isfinite(first_1D).all():
        hint = "Check the weights, or try `dtype: float32`."
        raise EngineError("the first batch failed: its vector is not finite", hint=hint)
    core = EncoderCore(
        encode,
        width=encoder.config.hidden_size,
        max_batch=options.max_batch,
        token_budget=options.token_budget,
        max_wait_s=options.max_wait_s,
        about={"runner": "torch", "dtype": str(dtype).removeprefix("torch."), "threads": threads},
    )
    return core, Ready(encoder.config.vocab_size, longest, frozenset(), core.stats())


def max_tokens_of(options: EncoderOptions, config: EncoderConfig) -> int:
    """Tokens that a text may have: what was asked for, else what the model says. Raises UsageError."""
    if options.context_length is not None and options.context_length > config.longest:
        what = f"`context_length` is {options.context_length}: expected at most {config.longest}"
        raise UsageError(f"{what}, for the model has no more positions", param="context_length")
    return options.context_length or config.max_tokens


def _dtype(options: EncoderOptions, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 for weights that are stored so and where the hardware multiplies it."""
    found = read_json(Path(options.model_dir) / "config.json")
    stored = found.get("dtype", found.get("torch_dtype"))
    return pick_dtype("float32" if options.dtype == "auto" and stored != "bfloat16" else options.dtype, device)


def _set_threads(options: EncoderOptions, run: Callable[[], object]) -> int:
    """As many of torch's threads as make ``run`` fastest here, unless a number was asked for."""
    counts = [count for count in candidates() if count <= (options.cores or count)]
    if options.threads or len(counts) == 1:
        threads = options.threads or counts[0]
    else:

        def attempt(count: int) -> None:
            torch.set_num_threads(count)
            run()

        threads, tried = fastest(attempt, counts)
        _log.info("torch uses %d threads (%s)", threads, ", ".join(f"{n}: {s * 1e3:.1f} ms" for n, s in tried.items()))
    torch.set_num_threads(threads)
    return threads
