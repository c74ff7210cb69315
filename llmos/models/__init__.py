"""The model: its shape, its computation, its files and its tokens, in the layout of Hugging Face.

Nothing is imported before it is used: whoever needs only the shape (``ModelConfig``) does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmos.models import weights
    from llmos.models.config import ModelConfig
    from llmos.models.tokenizer import StreamDecoder, Tokenizer, train_bpe
    from llmos.models.transformer import Transformer

__all__ = ["ModelConfig", "StreamDecoder", "Tokenizer", "Transformer", "train_bpe", "weights"]

_HOMES = {
    "ModelConfig": "config",
    "StreamDecoder": "tokenizer",
    "Tokenizer": "tokenizer",
    "Transformer": "transformer",
    "train_bpe": "tokenizer",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"llmos.models.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
