"""``POST /v1/embeddings``: what is asked, and the answer in both of its forms."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from llmos.errors import UsageError
from llmos.openai.schema import all_of
from llmos.openai.sse import encode
from llmos.openai.wire import Wire

MAX_INPUTS = 2048  # OpenAI's
MAX_USER_CHARS = 256

Matrix = npt.NDArray[np.float32]


class EmbeddingRequest(Wire):
    """``POST /v1/embeddings``."""

    model: str = Field(description="a served encoder")
    input: str | list[str] | list[int] | list[list[int]] = Field(description="text or tokens, one or several")
    encoding_format: Literal["float", "base64"] | None = Field(
        default=None, description="base64: of little-endian float32, as OpenAI's own client asks for"
    )
    dimensions: int | None = Field(default=None, ge=1, description="keep so many of a vector, made 1 long again")
    user: str | None = Field(default=None, max_length=MAX_USER_CHARS, description="users of one key take turns")
    priority: int = Field(default=0, ge=-100, le=0, description="below 0: after the requests of others; not OpenAI's")
    deadline_s: float | None = Field(
        default=None, gt=0, le=86400, description="seconds after which an answer is of no use; not OpenAI's"
    )
    truncate: bool = Field(default=False, description="leave out the end of an input that is too long; not OpenAI's")

    @property
    def inputs(self) -> list[str | list[int]]:
        """Each input: its text or its tokens."""
        if isinstance(self.input, str):
            return [self.input]
        return [self.input] if all_of(int, self.input) else list(self.input)  # type: ignore[list-item, arg-type]

    @field_validator("input", mode="before")
    @classmethod
    def _one_kind(cls, value: Any) -> Any:
        several = value if isinstance(value, list) and not all_of(int, value) else [value]
        if not (all_of(str, several) or all(all_of(int, one) for one in several)) or not several:
            raise ValueError("expected a text, texts, tokens or lists of tokens, and at least one")
        if len(several) > MAX_INPUTS:
            raise ValueError(f"has {len(several)} inputs: expected at most {MAX_INPUTS}")
        if not all(several):
            raise ValueError("has an empty input: expected text or tokens")
        return value


def embedding_reply(request: EmbeddingRequest, vectors_ND: Matrix, tokens: int) -> bytes:
    """The answer: one vector for each input, whose ``tokens`` were counted together.

    Raises UsageError when more dimensions are asked for than ``vectors_ND`` has.
    """
    vectors_ND = _shortened(vectors_ND, request.dimensions)
    written: Sequence[Any]
    if request.encoding_format == "base64":
        written = [base64.b64encode(one.astype("<f4").tobytes()).decode() for one in vectors_ND]
    else:
        written = vectors_ND.tolist()
    data = [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(written)]
    counts = {"prompt_tokens": tokens, "total_tokens": tokens}
    return encode({"object": "list", "data": data, "model": request.model, "usage": counts})


def _shortened(vectors_ND: Matrix, dimensions: int | None) -> Matrix:
    """The first ``dimensions`` of each vector, normalized (Matryoshka representations, Kusupati et al., 2022)."""
    width = vectors_ND.shape[1]
    if dimensions is None or dimensions == width:
        return vectors_ND
    if dimensions > width:
        raise UsageError(
            f"`dimensions` is {dimensions}: expected at most {width}, as the model has", param="dimensions"
        )
    kept_ND = vectors_ND[:, :dimensions]
    lengths_N1 = np.linalg.norm(kept_ND, axis=1, keepdims=True)
    return np.asarray(kept_ND / np.maximum(lengths_N1, np.finfo(np.float32).tiny), dtype=np.float32)
