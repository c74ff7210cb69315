"""The runner over the native step: the weights of a shard packed once, and one call for each step."""

from __future__ import annotations

import logging
from ctypes import byref, c_void_p
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmos.errors import EngineError
from llmos.infer.native.bindings import Library, Request, Shape, check, native_step
from llmos.infer.native.threads import candidates, fastest
from llmos.infer.shard import Matrix, Shard
from llmos.infer.step import BLOCK_TOKENS, Ints, Step
from llmos.models.rope import rotations

log = logging.getLogger("llmos.infer")

PANEL = 16
"""Columns of everything the native step reads and writes are padded to a multiple of it (``panels.h``)."""


@dataclass(frozen=True, slots=True)
class Span:
    """What of a pass to compute: the halves (attention, feed-forward) ``first`` to ``last`` - 1 of this shard's layers.

    ``embed`` begins with the embedding, ``logits`` ends with the logits. Without ``keep``, a half's result is what this
    rank adds, not its sum with what came in: of the ranks of a tensor-parallel group one keeps, and an all-reduce after
    each half adds up.
    """

    first: int
    last: int
    embed: bool = False
    logits: bool = False
    keep: bool = True


class NativeModel:
    """A shard's packed weights and its key-value cache of ``blocks`` blocks, in the native step's memory.

    ``cache_bits``: 32, or 16 for bfloat16; by default 32 for weights in float32. The shard may be let go afterwards,
    but for its embedding, which is read where it lies. Raises OutOfMemoryError and EngineError.
    """

    def __init__(self, shard: Shard, blocks: int, *, cache_bits: int | None = None, threads: int = 1) -> None:
        self._library: Library = native_step()
        self._handle = c_void_p()
        self.shard_config, self.layers, self.blocks = shard.config, len(shard.layers), blocks
        self.vocab_size = 0 if shard.output is None else len(shard.output.weight)
        self.positions = min(shard.config.max_position, blocks * BLOCK_TOKENS)
        self._embedding = shard.embedding_VD
        shape, rotation = _shape(shard, blocks, self.positions, cache_bits), self._rotations()
        code = self._library.create(byref(shape), rotation[0].data_ptr(), rotation[1].data_ptr(), byref(self._handle))
        check(code, f"the key-value cache of {blocks} blocks")
        self._fill(shard, threads)

    def _rotations(self) -> tuple[Tensor, Tensor]:
        cosines, sines = rotations(self.shard_config, torch.arange(self.positions))
        return cosines.contiguous(), sines.contiguous()

    def _fill(self, shard: Shard, threads: int) -> None:
        for number, layer in enumerate(shard.layers):
            vectors = (
                *(layer.attention_norm_D, layer.mlp_norm_D, layer.qkv_bias),
                *(layer.query_norm_E, layer.key_norm_E),
            )
            for which, vector in enumerate(vectors):
                self._set_vector(number, which, vector)
            for which, matrix in enumerate((layer.qkv, layer.out, layer.gate_up, layer.down)):
                self._set_matrix(number, which, matrix, threads)
        self._set_vector(-1, 0, shard.norm_D)
        if shard.output is not None:
            self._set_matrix(-1, 0, shard.output, threads)
        if self._embedding is not None:
            self._embedding = self._embedding.detach().contiguous()
            bits = _float_bits(self._embedding, "the embedding")
            self._library.embedding(self._handle, self._embedding.data_ptr(), bits)

    def _set_vector(self, layer: int, which: int, vector: Tensor | None) -> None:
        if vector is not None:
            values = vector.detach().float().contiguous()
            code = self._library.vector(self._handle, layer, which, values.data_ptr(), len(values))
            check(code, "the weights")

    def _set_matrix(self, layer: int, which: int, matrix: Matrix, threads: int) -> None:
        weight = matrix.weight.detach().contiguous()
        outputs, inputs = len(weight), weight.shape[1] * (2 if matrix.bits == 4 else 1)
        if matrix.bits > 8:
            _float_bits(weight, "a matrix")
        scale = None if matrix.scale is None else matrix.scale.detach().float().contiguous()
        pointers = weight.data_ptr(), 0 if scale is None else scale.data_ptr()
        numbers = outputs, inputs, matrix.bits, matrix.group if matrix.bits == 4 else 0, threads
        check(self._library.matrix(self._handle, layer, which, *pointers, *numbers), "the packed weights")

    def run(self, step: Step, span: Span, hidden_ND: Tensor, threads: int) -> Tensor | None:
        """Compute ``span`` of ``step`` on ``hidden_ND`` (:meth:`hidden`), in place. The logits [L, V] if it has them.

        Raises EngineError for a step that does not fit the cache or the vocabulary.
        """
        return self.prepared(step, hidden_ND, threads).run(span)

    def prepared(self, step: Step, hidden_ND: Tensor, threads: int) -> Prepared:
        """``step``, ready to be computed in spans on ``hidden_ND``. Raises EngineError as :meth:`run` does."""
        self._check(step)
        return Prepared(self._library, self._handle, self.vocab_size, step, hidden_ND, threads)

    def hidden(self, tokens: int) -> Tensor:
        """Room for the hidden states of ``tokens`` tokens, float32 [N, D], D rounded up to 16; what is beyond is 0."""
        return torch.zeros((tokens, _padded(self.shard_config.hidden_size)))

    def _check(self, step: Step) -> None:
        """Native code trusts what it is given: an index beyond the end would read anything."""
        limits = (
            ("token", step.tokens_N, self.shard_config.vocab_size),
            ("position", step.positions_N, self.positions),
            ("block", step.blocks_SM, self.blocks),
            ("token to answer", step.logits_at_L, len(step.tokens_N)),
        )
        for what, array, limit in limits:
            _within(what, array, limit)
        most = int(step.positions_N.max()) // BLOCK_TOKENS
        if most >= step.blocks_SM.shape[1]:
            raise EngineError(f"a step has a token in block {most} of its sequence: expected a row of as many blocks")

    @property
    def stats(self) -> dict[str, object]:
        """Bytes of the packed weights and of the cache, and the instructions used."""
        return {
            "instructions": self._library.instructions,
            "weight_bytes": int(self._library.weight_bytes(self._handle)),
            "cache_bytes": int(self._library.cache_bytes(self._handle)),
        }

    def close(self) -> None:
        """Free the memory."""
        handle, self._handle = self._handle, c_void_p()
        if handle:
            self._library.destroy(handle)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self.close()


class Prepared:
    """A step that was checked, and its arrays as the native step reads them: a rank computes it span by span."""

    def __init__(
        self, library: Library, handle: c_void_p, vocab_size: int, step: Step, hidden_ND: Tensor, threads: int
    ) -> None:
        self._library, self._handle, self._vocab_size = library, handle, vocab_size
        self._wanted, self._hidden_ND = len(step.logits_at_L), hidden_ND
        self._what = f"a step of {len(step.tokens_N)} tokens"
        self._arrays = [
            np.ascontiguousarray(array, np.int32)
            for array in (step.tokens_N, step.positions_N, step.starts_S, step.blocks_SM, step.logits_at_L)
        ]
        self._request = Request(
            tokens=len(step.tokens_N),
            sequences=len(step.starts_S) - 1,
            row_blocks=step.blocks_SM.shape[1],
            threads=threads,
            hidden=hidden_ND.data_ptr(),
        )
        names = ("token_N", "position_N", "start_S", "block_SM", "logits_at_L")
        for name, array in zip(names, self._arrays, strict=True):
            setattr(self._request, name, array.ctypes.data)

    def run(self, span: Span) -> Tensor | None:
        """Compute ``span``; the logits [L, V] if it has them."""
        request = self._request
        request.first_half, request.last_half = span.first, span.last
        request.embed, request.keep = span.embed, span.keep
        request.logits = self._wanted if span.logits else 0
        logits_LV = torch.empty((request.logits, _padded(self._vocab_size))) if span.logits else None
        request.logits_out = None if logits_LV is None else logits_LV.data_ptr()
        check(self._library.run(self._handle, byref(request)), self._what)
        return None if logits_LV is None else logits_LV[:, : self._vocab_size]


class NativeRunner:
    """A whole model in one process. ``threads`` None: :meth:`calibrate` chooses."""

    depth = 1

    def __init__(self, shard: Shard, blocks: int, *, cache_bits: int | None = None, threads: int | None = None) -> None:
        counts = candidates()
        self._model = NativeModel(shard, blocks, cache_bits=cache_bits, threads=threads or counts[-1])
        self.vocab_size, self.blocks = self._model.vocab_size, blocks
        self._whole = Span(0, 2 * self._model.layers, embed=True, logits=True)
        self._logits_LV: Tensor | None = None
        self._alone = False
        self._tried: dict[int, float] = {}
        self.threads = threads or self.calibrate(counts)

    def calibrate(self, counts: list[int]) -> int:
        """The number of threads that computes one token, and a batch of them, fastest, all things considered."""
        if len(counts) == 1:
            return counts[0]
        some = Span(0, min(2 * self._model.layers, CALIBRATED_HALVES), embed=True)
        steps = [_trial(size) for size in (1, 16)]
        hidden = [self._model.hidden(len(step.tokens_N)) for step in steps]

        def run(threads: int) -> None:
            for step, hidden_ND in zip(steps, hidden, strict=True):
                self._model.run(step, some, hidden_ND, threads)

        best, self._tried = fastest(run, counts)
        tried = ", ".join(f"{count}: {seconds * 1e3:.2f} ms" for count, seconds in self._tried.items())
        log.info("the native step uses %d threads (%s)", best, tried)
        return best

    def start(self, step: Step) -> None:
        """Compute ``step``, all of it: other threads of Python run meanwhile. Raises EngineError."""
        if not self._alone:
            # what torch's threads do between steps (sampling) they await spinning, on cores that the step needs
            torch.set_num_threads(1)
            self._alone = True
        if self._logits_LV is not None:
            raise EngineError("a step was started before the last was finished: expected finish() first")
        hidden_ND = self._model.hidden(len(step.tokens_N))
        self._logits_LV = self._model.run(step, self._whole, hidden_ND, self.threads)

    def finish(self) -> Tensor:
        """The logits [L, V] of the step that was started, float32. Raises EngineError."""
        logits_LV, self._logits_LV = self._logits_LV, None
        if logits_LV is None:
            raise EngineError("no step was started: expected start() before finish()")
        return logits_LV

    def stats(self) -> dict[str, object]:
        """The runner's kind, instructions, bytes, threads, and the seconds that each tried number of threads took."""
        return {"runner": "native", **self._model.stats, "threads": self.threads, "tried_s": dict(self._tried)}

    def close(self) -> None:
        """Free the weights and the cache."""
        self._model.close()


CALIBRATED_HALVES = 8
"""A few layers are as good as all of them to compare numbers of threads, and take milliseconds."""


def _trial(size: int) -> Step:
    """A step to measure: ``size`` tokens of one sequence, in block 0, which nobody uses yet."""
    at_N: Ints = np.arange(size, dtype=np.int32)
    none = np.zeros(0, np.int32)
    return Step(np.zeros(size, np.int32), at_N, np.array([0, size], np.int32), np.zeros((1, 1), np.int32), none)


def _shape(shard: Shard, blocks: int, positions: int, cache_bits: int | None) -> Shape:
    config, first = shard.config, shard.layers[0]
    features = len(first.gate_up.weight) // 2
    return Shape(
        *(len(shard.layers), config.hidden_size, shard.heads, shard.kv_heads, config.head_dim, features),
        *(0 if shard.output is None else len(shard.output.weight), config.sliding_window or 0, blocks),
        *(cache_bits or (32 if first.qkv.bits == 32 else 16), positions, config.norm_eps),
    )


def _within(what: str, array: Ints, limit: int) -> None:
    if array.size and not 0 <= int(array.min()) <= int(array.max()) < limit:
        raise EngineError(f"a step names {what} {int(array.max())}: expected 0 to {limit - 1}")


def _float_bits(tensor: Tensor, what: str) -> int:
    bits = {torch.float32: 32, torch.bfloat16: 16}.get(tensor.dtype)
    if bits is None:
        raise EngineError(f"{what} is in {tensor.dtype}: expected float32 or bfloat16")
    return bits


def _padded(columns: int) -> int:
    return -(-columns // PANEL) * PANEL
