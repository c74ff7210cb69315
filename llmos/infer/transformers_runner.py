"""The slow way: models that llmos does not compute itself, by transformers, one sequence after another."""

from __future__ import annotations

from collections import OrderedDict, deque
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmos.errors import ModelError, UnsupportedModelError
from llmos.infer.step import BLOCK_TOKENS, Step

_CONTEXT = 2048
"""Of a model whose configuration names none, as those that read state by state."""


class TransformersRunner:
    """Computes steps with any decoder of transformers: see :class:`llmos.infer.step.Runner`.

    Its pages hold tokens, not keys and values: those are with transformers, for the ``sequences`` used last, and are
    found by the tokens that they are of. Other sequences are computed from their beginning. Raises ModelError.
    """

    depth = 1

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device, sequences: int) -> None:
        if find_spec("transformers") is None:
            what = "llmos does not compute this model itself, and transformers is not installed"
            raise UnsupportedModelError(what, hint="`pip install transformers`, or use `engine: vllm`.")
        try:
            self._model: Any = import_module("transformers").AutoModelForCausalLM.from_pretrained(
                directory, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except Exception as error:  # whatever the library and the model's code raise
            what = f"{directory} cannot be loaded by transformers either: {type(error).__name__}: {error}"
            raise ModelError(what, hint="Use a decoder that transformers knows, in safetensors files.") from error
        self._model.to(device).eval()
        config = self._model.config.get_text_config()
        self.vocab_size = int(config.vocab_size)
        self.context_length = int(getattr(config, "max_position_embeddings", None) or _CONTEXT)
        ends = config.eos_token_id
        self.ends = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
        self.blocks = sequences * -(-self.context_length // BLOCK_TOKENS)
        self._device, self._sequences = device, sequences
        self._tokens_BT = np.zeros((self.blocks, BLOCK_TOKENS), np.int32)
        self._pasts: OrderedDict[bytes, Any] = OrderedDict()
        self._done: deque[Tensor] = deque()

    @torch.inference_mode()
    def start(self, step: Step) -> None:
        """See :class:`llmos.infer.step.Runner`."""
        rows = [self._sequence(step, number) for number in range(len(step.starts_S) - 1)]
        self._done.append(torch.cat(rows)[:, : self.vocab_size].float())

    def finish(self) -> Tensor:
        """See :class:`llmos.infer.step.Runner`."""
        return self._done.popleft()

    def stats(self) -> dict[str, object]:
        """See :class:`llmos.infer.step.Runner`."""
        return {"runner": "transformers", "kernels": type(self._model).__name__}

    def close(self) -> None:
        """See :class:`llmos.infer.step.Runner`."""
        self._pasts.clear()
        del self._model

    def _sequence(self, step: Step, number: int) -> Tensor:
        """The wanted logits [l, V] of one sequence."""
        start, end = step.starts_S[number : number + 2]
        at_n, blocks_M = step.positions_N[start:end], step.blocks_SM[number]
        self._tokens_BT[blocks_M[at_n // BLOCK_TOKENS], at_n % BLOCK_TOKENS] = step.tokens_N[start:end]
        tokens_T = self._tokens_BT[blocks_M].ravel()[: at_n[-1] + 1]
        past = self._pasts.pop(tokens_T[: at_n[0]].tobytes(), None)
        new_T = tokens_T if past is None else tokens_T[at_n[0] :]
        given_1T = torch.from_numpy(new_T[None].astype(np.int64)).to(self._device)
        out = self._model(input_ids=given_1T, past_key_values=past, use_cache=True)
        self._pasts[tokens_T.tobytes()] = out.past_key_values
        while len(self._pasts) > self._sequences:
            self._pasts.popitem(last=False)
        wanted_l = step.logits_at_L[(step.logits_at_L >= start) & (step.logits_at_L < end)] - end + len(new_T)
        logits_lV: Tensor = out.logits[0, torch.from_numpy(wanted_l).to(self._device)]
        return logits_lV
