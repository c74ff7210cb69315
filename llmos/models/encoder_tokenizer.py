"""Texts to an encoder's tokens: whatever tokenizer.json says, with what stands around a text. No torch here.

Text from outside is only text: ``[SEP]`` typed by a user becomes the characters, never the control token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import tokenizers

from llmos.errors import ModelError


class EncoderTokenizer:
    """WordPiece, BPE or Unigram. ``vocab_size`` is one more than the largest token."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # "as text", despite its name
        self._backend = backend
        self._around = backend.num_special_tokens_to_add(False)
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """The tokenizer in ``directory``/tokenizer.json. Raises ModelError when it is missing or broken."""
        path = Path(directory) / "tokenizer.json"
        if not path.exists():
            hint = "Save the model again with transformers, which makes one of a vocab.txt."
            raise ModelError(f"there is no {path}: expected a tokenizer in Hugging Face's format", hint=hint)
        try:
            return cls(tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")))
        except Exception as error:  # what the library raises for any bad content
            raise ModelError(f"{path} is not a tokenizer: {error}", hint="Copy the model again.") from error

    def encode(self, texts: Sequence[str], longest: int | None = None) -> list[tuple[int, ...]]:
        """The tokens of each of ``texts``, on all cores; the end of a text is cut off beyond ``longest`` tokens."""
        found = self._backend.encode_batch_fast(list(texts), add_special_tokens=True)
        return [
            tuple(one.ids if longest is None or len(one.ids) <= longest else self._cut(text, longest))
            for text, one in zip(texts, found, strict=True)
        ]

    def tokens(self, text: str, around: bool = True) -> list[int]:
        """The tokens of ``text``, with what stands ``around`` it or without."""
        return list(self._backend.encode(text, add_special_tokens=around).ids)

    def spelling(self, token: int) -> str:
        """How ``token`` is written in the vocabulary."""
        return str(self._backend.id_to_token(token))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``, control tokens spelled out."""
        return str(self._backend.decode(list(tokens), skip_special_tokens=False))

    def _cut(self, text: str, longest: int) -> list[int]:
        """``longest`` tokens of ``text``, what stands around it among them."""
        begin = self._backend.encode(text, add_special_tokens=False)
        begin.truncate(longest - self._around)
        return list(self._backend.post_process(begin, None, True).ids)
