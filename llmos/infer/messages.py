"""What the two sides of an engine tell each other: tokens here, text there. Plain values, which cross a pipe; no torch.

To the core: a list of CoreRequest (do this; EncodeRequest for an encoder) and str (the id of a request to cancel). From
it: one Ready, then Reports, and an LlmosError when it is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from llmos.errors import DeadlineError, LlmosError
from llmos.infer.encoder_messages import EncodeRequest
from llmos.infer.request import FinishReason, SamplingParams, TokenLogprob


@dataclass(frozen=True, slots=True)
class CoreRequest:
    """A prompt to continue up to ``limit`` tokens, prompt included. ``ends`` are those that end a text of the model.

    ``id`` is never used again, unlike that of a GenerationRequest. ``arrived`` and ``deadline`` are times of
    ``time.monotonic()``, which is one clock for all processes of a machine.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    limit: int
    ends: frozenset[int]
    arrived: float
    tenant: str = ""
    user: str = ""
    priority: int = 0
    weight: float = 1.0
    deadline: float | None = None


Message = CoreRequest | EncodeRequest | str

T = TypeVar("T")


class Outcome(NamedTuple):
    """What a step brought one request: more tokens, and why it is over if it is; or an error, which ends it.

    ``stop`` as the reason means that the last token ends the answer. ``cached`` tokens of the prompt were in the cache.
    """

    id: str
    tokens: Sequence[int] = ()
    logprobs: Sequence[TokenLogprob] = ()
    reason: FinishReason | None = None
    error: LlmosError | None = None
    cached: int = 0


class Report(NamedTuple, Generic[T]):
    """What a step brought (an Outcome each, of an encoder an Encoded), and how the core is doing after it."""

    outcomes: list[T]
    stats: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ready:
    """What a core can do, once its model is loaded. ``ends`` are the tokens that end a text, by its configuration."""

    vocab_size: int
    context_length: int
    ends: frozenset[int]
    stats: dict[str, Any]


def late(made: int, asked: int) -> DeadlineError:
    """For an answer of which ``made`` tokens of at most ``asked`` were there at its deadline."""
    what = f"the answer was not complete by its deadline: {made} of {asked} tokens were made"
    return DeadlineError(what, hint="Allow more time, or ask for fewer tokens.")
