"""Makes the runners of one model: which one, with which memory and threads, and why, which is logged.

Runners that are not chosen are not imported: torch's distributed and compiling parts take longer than all else.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from llmos.errors import EngineError, UsageError
from llmos.files import read_json
from llmos.infer import memory
from llmos.infer.blocks import blocks_for
from llmos.infer.dtypes import pick_dtype
from llmos.infer.launch import Launch, launch_here
from llmos.infer.load import load_shard
from llmos.infer.native.bindings import native_step
from llmos.infer.native.build import available
from llmos.infer.native.runner import NativeRunner
from llmos.infer.native.threads import candidates, fastest
from llmos.infer.options import EngineOptions
from llmos.infer.packed import activation_dtype
from llmos.infer.shard import Shard
from llmos.infer.step import BLOCK_TOKENS, Better, Runner
from llmos.infer.trial import trial
from llmos.models import ModelConfig

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Makers:
    """Makes runners for one model."""

    options: EngineOptions
    config: ModelConfig
    context_length: int
    device: torch.device
    dtype: torch.dtype
    launch: Launch

    @classmethod
    def of(cls, options: EngineOptions, launch: Launch = launch_here) -> Makers:
        """Raises ModelError, and UsageError for options that do not go with the model."""
        directory, device = Path(options.model_dir), torch.device(options.device)
        config = ModelConfig.load(directory)
        return cls(
            options,
            config,
            context_length_of(options, config.max_position),
            device,
            dtype_of(options, directory, device),
            launch,
        )

    def draft(self) -> Makers:
        """Of the draft model, whose context may be shorter: then long answers have no drafts."""
        assert self.options.draft is not None
        longest = min(self.context_length, ModelConfig.load(self.options.draft).max_position)
        alone = replace(self.options, model_dir=self.options.draft, tp=1, pp=1, draft=None)
        return Makers.of(replace(alone, context_length=longest))

    def sharing_memory_with(self, draft: Makers) -> tuple[Makers, Makers]:
        """Both, with one memory for their caches: as many blocks in each."""
        memory_bytes, own = self._cache_bytes(self.dtype.itemsize), self._block_bytes(1)
        mine = memory_bytes * own // (own + draft._block_bytes(1))
        return self._with_memory(mine), draft._with_memory(memory_bytes - mine)

    def _with_memory(self, memory_bytes: int) -> Makers:
        return replace(self, options=replace(self.options, memory_bytes=memory_bytes))

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

    def choose(self) -> tuple[Runner, Better | None]:
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
        return self.torch(), _later(lambda: functools.partial(self._calibrated, self._native()))

    def ranks(self) -> Runner:
        """Several processes: they share the cores of this machine, or have each its part of ``cores`` elsewhere."""
        from llmos.infer.ranks import RanksRunner

        options, count = self.options, self.options.tp * self.options.pp
        cores = options.cores if options.host and options.cores else counts(options)[-1]
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
        """The step in C++, compiled now if need be."""
        return self._calibrated(self._native())

    def _calibrated(self, runner: NativeRunner) -> Runner:
        """``runner`` with as many threads as are fastest here, which shows only while nothing else computes."""
        if self.options.threads is None:
            runner.threads = runner.calibrate(counts(self.options))
        return runner

    def _native(self) -> NativeRunner:
        """Compiled before the weights are read, for there may be no compiler."""
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
        threads = self.options.threads or counts(self.options)[-1]  # all, for nothing else computes yet
        return NativeRunner(shard, account.blocks, cache_bits=8 * itemsize, threads=threads)

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
            torch.set_num_threads(self.options.threads or measured(runner, counts(self.options)))
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


def measured(runner: Runner, counts: Sequence[int]) -> int:
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


def counts(options: EngineOptions) -> list[int]:
    """Numbers of threads to try."""
    return [count for count in candidates() if count <= (options.cores or count)]


def context_length_of(options: EngineOptions, longest: int) -> int:
    """What was asked for; else ``longest``, the model's own. Raises UsageError."""
    if options.context_length is not None and options.context_length > longest:
        what = f"`context_length` is {options.context_length}: expected 2 to {longest}, the model's own"
        raise UsageError(what, param="context_length")
    return options.context_length or longest


def dtype_of(options: EngineOptions, directory: Path, device: torch.device) -> torch.dtype:
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


def _later(make: Callable[[], Callable[[], Runner]]) -> Better:
    """What ``make`` gives, from a thread that nobody waits for at the end."""
    future: Better = Future()

    def run() -> None:
        try:
            future.set_result(make())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="llmos-native", daemon=True).start()
    return future
