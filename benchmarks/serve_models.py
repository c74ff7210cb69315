"""The models that serving is measured with: random weights in bf16, in the Hugging Face layout, and a tokenizer.

They are written once, under ``.bench/models``, without any of the code that is measured. Every engine reads the same
files. Of random weights nothing but the speed means anything.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from benchmarks.peers import DIRECTORY
from llmos.files import write_json
from llmos.models import Tokenizer

END = "<|endoftext|>"
MAX_POSITION = 8192
_HEAD = 64
_DEVIATION = 0.02


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder with tied embeddings and heads of 64 features; ``bias`` is on queries, keys and values."""

    name: str
    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    bias: bool = False

    @property
    def directory(self) -> Path:
        """Where it is, or will be."""
        return DIRECTORY / "models" / self.name

    @property
    def read_bytes(self) -> int:
        """What a step reads of the weights, in bf16: all; of the embedding as the output matrix."""
        attention = self.hidden * _HEAD * 2 * (self.heads + self.kv_heads)
        return 2 * (self.layers * (attention + 3 * self.hidden * self.intermediate) + self.vocab * self.hidden)

    def written(self) -> Path:
        """Its directory, with everything in it."""
        if not (self.directory / "config.json").exists():  # written last
            self.directory.mkdir(parents=True, exist_ok=True)
            torch.manual_seed(0)
            save_file(dict(self._tensors()), self.directory / "model.safetensors", {"format": "pt"})
            tokenizer(self.vocab).save(self.directory)
            write_json(self.directory / "config.json", self._config())
        return self.directory

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield "model.embed_tokens.weight", _random(self.vocab, self.hidden)
        yield "model.norm.weight", torch.ones(self.hidden, dtype=torch.bfloat16)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield f"{prefix}{name}.weight", torch.ones(self.hidden, dtype=torch.bfloat16)
            for name, heads in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads)):
                yield f"{prefix}self_attn.{name}_proj.weight", _random(heads * _HEAD, self.hidden)
                if self.bias:
                    yield f"{prefix}self_attn.{name}_proj.bias", _random(heads * _HEAD)
            yield f"{prefix}self_attn.o_proj.weight", _random(self.hidden, self.heads * _HEAD)
            for name in ("gate", "up"):
                yield f"{prefix}mlp.{name}_proj.weight", _random(self.intermediate, self.hidden)
            yield f"{prefix}mlp.down_proj.weight", _random(self.hidden, self.intermediate)

    def _config(self) -> dict[str, Any]:
        return {
            "architectures": [self.architecture],
            "model_type": self.architecture.removesuffix("ForCausalLM").lower(),
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": _HEAD,
            "vocab_size": self.vocab,
            "max_position_embeddings": MAX_POSITION,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "bos_token_id": self.vocab - 1,
            "eos_token_id": self.vocab - 1,
        }


SMOLLM_135M = Shape("smollm-135m", "LlamaForCausalLM", 30, 576, 9, 3, 1536, 49152)
QWEN_500M = Shape("qwen2.5-0.5b", "Qwen2ForCausalLM", 24, 896, 14, 2, 4864, 151936, bias=True)
LLAMA_8B = Shape("llama-8b", "LlamaForCausalLM", 32, 4096, 32, 8, 14336, 128256)


def tokenizer(size: int) -> Tokenizer:
    """A byte-level BPE of ``size`` tokens: the bytes, then words of two, three and four letters, and one that ends."""
    vocabulary = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    words = (letters for count in (2, 3, 4) for letters in itertools.product(string.ascii_lowercase, repeat=count))
    for letters in itertools.islice(words, size - len(vocabulary) - 1):
        merges.append(("".join(letters[:-1]), letters[-1]))
        vocabulary.append("".join(letters))
    backend = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END])
    return Tokenizer(backend, {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END})


def _random(*shape: int) -> Tensor:
    return (torch.randn(*shape) * _DEVIATION).bfloat16()
