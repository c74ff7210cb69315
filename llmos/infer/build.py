"""From a directory and options to a core: the type, the memory and the runner, chosen with a reason that is logged.

Runners that are not chosen are not imported: torch's distributed and compiling parts take longer than all else.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from llmos import models
from llmos.errors import EngineError, UnsupportedModelError, UsageError
from llmos.files import read_json
from llmos.infer import memory
from llmos.infer.blocks import blocks_for
from llmos.infer.core import EngineCore, Limits
from llmos.infer.dtypes import pick_dtype
from llmos.infer.launch import Launch, launch_here
from llmos.infer.load import load_shard
from llmos.infer.lookup import PromptLookup
from llmos.infer.messages import Ready
from llmos.infer.native.bindings import native_step
from llmos.infer.native.build import available
from llmos.infer.native.runner import NativeRunner
from llmos.infer.native.threads import candidates, fastest
from llmos.infer.options import EngineOptions
from llmos.infer.packed import activation_dtype
from llmos.infer.sampling import Sampler
from llmos.infer.shard import Shard
from llmos.infer.speculative import Speculation
from llmos.infer.step import BLOCK_TOKENS, Runner
from llmos.infer.trial import trial
from llmos.models import ModelConfig

_log = logging.getLogger(__name__)


def build(options: EngineOptions, launch: Launch = launch_here) -> tuple[EngineCore, Ready]:
    """Load the model; ``launch`` starts ranks. Raises ModelError, UsageError, OutOfMemoryError, and EngineError if the
    first step fails."""
    try:
        makers = _Makers.of(options, launch)
    except UnsupportedModelError as error:
        return _the_slow_way(options, error)
    runner, better = makers.choose()
    core = EngineCore(
        runner,
        Limits(options.max_batch, options.token_budget, makers.context_length, options.prefix_cache),
        tokenizer=lambda: models.Tokenizer.load(options.model_dir),
        about={"dtype": str(makers.dtype).removeprefix("torch.")},
        speculation=_speculation(makers) if options.speculative else None,
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
    dtype = _dtype(options, directory, device)
    _log.warning("runner: transformers, the slow way, for llmos does not compute this model: %s", reason.message)
    runner = TransformersRunner(directory, dtype, device, options.max_batch)
    if device.type == "cpu":
        torch.set_num_threads(options.threads or _measured(runner, _counts(options)))
    context_length = _context_length(options, runner.context_length)
    core = EngineCore(
        runner,
        Limits(options.max_batch, options.token_budget, context_length, prefix_cache=False),
        tokenizer=lambda: models.Tokenizer.load(directory),
        about={"dtype": str(dtype).removeprefix("torch.")},
    )
    return core, Ready(runner.vocab_size, context_length, runner.ends, core.stats())


def _speculation(makers: _Makers) -> Callable[[Sampler], Speculation]:
    options = makers.options
    if options.draft is None:
        return lambda _: Speculation(PromptLookup(), options.speculative)
    from llmos.infer.draft_model import DraftModel

    longest = ModelConfig.load(options.draft).max_position  # it may be shorter: then long answers have no drafts
    context_length, vocab_size = min(makers.context_length, longest), makers.config.vocab_size
    draft = _Makers.of(replace(options, model_dir=options.draft, context_length=context_length, tp=1, pp=1, draft=None))
    runner = draft.native() if draft.native_ready(wait=True) else draft.torch()
    return lambda sampler: Speculation(DraftModel(runner, sampler, vocab_size, context_length), options.speculative)


@dataclass(frozen=True, slots=True)
class _Makers:
    """Makes runners for one model."""

    options: EngineOptions
    config: ModelConfig
    context_length: int
    device: torch.device
    dtype: torch.dtype
    launch: Launch

    @classmethod
    def of(cls, options: EngineOptions, launch: Launch = launch_here) -> _Makers:
        """Raises ModelError, and UsageError for options that do not go with the model."""
        directory, device = Path(options.model_dir), torch.device(options.device)
        config = ModelConfig.load(directory)
        context_length, dtype = _context_length(options, config.max_position), _dtype(options, directory, device)
        return cls(options, config, context_length, device, dtype, launch)

    def native_ready(self, wait: bool = False) -> bool:
        """Whether the native step is what computes, and is there; compiled now if ``wait``. Logs why it cannot be."""
        asked = self.options.runner
        if asked != "auto" or self.device.type != "cpu":
            return asked == "native"
        if not available():
            if not wait:
                return False
            _log.info("the native step is compiled before the start: what computes cannot be exchanged later")
        try:
            native_step()
        except EngineError as error:
            _log.warning("the native step cannot be used: %s", error)
            return False
        return True

    def choose(self) -> tuple[Runner, Future[Runner] | None]:
        """The runner to begin with, and the better one that is on its way, if there is one."""
        asked = self.options.runner
        if asked == "native" and self.device.type != "cpu":
            raise UsageError(f"`runner` is native and `device` {self.device}: expected cpu", param="runner")
        if self.options.tp * self.options.pp > 1:
            self._say("ranks", f"tp {self.options.tp} × pp {self.options.pp} was asked for")
            return self.ranks(), None
        if self.native_ready(wait=self.options.draft is not None):
            self._say("native", "asked for" if asked == "native" else "it is compiled for this machine")
            return self.native(), None
        if asked == "torch" or self.device.type != "cpu":
            self._say("torch", "asked for" if asked == "torch" else f"the device is {self.device}")
            return self.torch(), None
        if available():
            self._say("torch", "the native step is compiled, but cannot be loaded")
            return self.torch(), None
        self._say("torch", "the native step is being compiled, and takes over when it is there")
        return self.torch(), _later(self.native)

    def ranks(self) -> Runner:
        """Several processes: they share the cores of this machine, or have each its part of ``cores`` elsewhere."""
        from llmos.infer.ranks import RanksRunner

        options, count = self.options, self.options.tp * self.options.pp
        cores = options.cores if options.host and options.cores else _counts(options)[-1]
        return RanksRunner(
            options.model_dir,
            tp=options.tp,
            pp=options.pp,
            dtype=self.dtype,
            device=options.device,
            runner="native" if self.native_ready(wait=True) else "torch",
            threads=options.threads or max(1, cores // count),
            memory_bytes=self._cache_bytes(self.dtype.itemsize) if self.device.type == "cpu" else options.memory_bytes,
            context_length=self.context_length,
            step_tokens=options.token_budget,
            step_logits=options.max_batch,
            host=options.host or "127.0.0.1",
            launch=self.launch,
        )

    def native(self) -> Runner:
        """The step in C++, compiled now if need be: before the weights are read, for there may be no compiler."""
        native_step()
        shard = self._shard()
        weights_bytes, itemsize = size_bytes(shard), self.dtype.itemsize
        account = memory.account(
            self.device,
            weights_bytes=weights_bytes,
            working_bytes=weights_bytes,  # the packed ones, beside those that they are made from
            block_bytes=self._block_bytes(itemsize),
            blocks=None,
            memory_bytes=self._cache_bytes(itemsize),
            context_length=self.context_length,
        )
        _log.info("%s", account)
        runner = NativeRunner(shard, account.blocks, cache_bits=8 * itemsize, threads=self.options.threads or 1)
        if self.options.threads is None:
            runner.threads = runner.calibrate(_counts(self.options))
        return runner

    def torch(self) -> Runner:
        """Plain torch."""
        from llmos.infer.torch_runner import TorchRunner

        shard = self._shard()
        cache_bytes = self._cache_bytes(activation_dtype(self.dtype, self.device).itemsize)
        runner = TorchRunner(
            shard,
            dtype=self.dtype,
            device=self.device,
            memory_bytes=cache_bytes,
            context_length=self.context_length,
            step_tokens=self.options.token_budget,
            step_logits=self.options.max_batch,
        )
        if self.device.type == "cpu":
            torch.set_num_threads(self.options.threads or _measured(runner, _counts(self.options)))
        return runner

    def _shard(self) -> Shard:
        return load_shard(self.options.model_dir, self.dtype, device=self.device)

    def _cache_bytes(self, itemsize: int) -> int:
        """What was asked for; else a share of what is free, but no more than all who run can use, and as much again.

        (What is beyond that keeps prompts for those who come later.)
        """
        if self.options.memory_bytes is not None:
            return self.options.memory_bytes
        most = 2 * self.options.max_batch * blocks_for(self.context_length) * self._block_bytes(itemsize)
        share = memory.CPU_SHARE if self.device.type == "cpu" else memory.GPU_SHARE
        return min(most, int(memory.free_bytes(self.device) * share))

    def _block_bytes(self, itemsize: int) -> int:
        config = self.config
        return config.num_layers * 2 * config.num_kv_heads * config.head_dim * BLOCK_TOKENS * itemsize

    def _say(self, runner: str, reason: str) -> None:
        _log.info("runner: %s (%s), %s", runner, reason, str(self.dtype).removeprefix("torch."))


def _measured(runner: Runner, counts: Sequence[int]) -> int:
    """With how many of torch's threads ``runner`` is fastest."""
    if len(counts) == 1:
        return counts[0]

    def run(threads: int) -> None:
        torch.set_num_threads(threads)
        for size in (1, BLOCK_TOKENS):
            runner.start(trial(size))
            runner.finish()

    best, tried = fastest(run, counts)
    _log.info("torch uses %d threads (%s)", best, ", ".join(f"{n}: {s * 1e3:.1f} ms" for n, s in tried.items()))
    return best


def _counts(options: EngineOptions) -> list[int]:
    """Numbers of threads to try."""
    return [count for count in candidates() if count <= (options.cores or count)]


def _context_length(options: EngineOptions, longest: int) -> int:
    if options.context_length is not None and options.context_length > longest:
        what = f"`context_length` is {options.context_length}: expected 2 to {longest}, the model's own"
        raise UsageError(what, param="context_length")
    return options.context_length or longest


def _dtype(options: EngineOptions, directory: Path, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 for weights that are stored so, for nothing is lost and half as much is read."""
    found = read_json(directory / "config.json")
    stored = found.get("dtype", found.get("torch_dtype"))
    return pick_dtype("bfloat16" if options.dtype == "auto" and stored == "bfloat16" else options.dtype, device)


def size_bytes(shard: Shard) -> int:
    """Of the matrices of ``shard``; a tied one counts once."""
    matrices = [m for layer in shard.layers for m in (layer.qkv, layer.out, layer.gate_up, layer.down)]
    matrices += [shard.output] if shard.output else []
    tensors = [shard.embedding_VD, *(part for m in matrices for part in (m.weight, m.scale))]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors if tensor is not None}.values())


def _later(make: Callable[[], Runner]) -> Future[Runner]:
    """What ``make`` gives, from a thread that nobody waits for at the end."""
    future: Future[Runner] = Future()

    def run() -> None:
        try:
            future.set_result(make())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="llmos-native", daemon=True).start()
    return future
