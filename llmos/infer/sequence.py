"""One request on its way: its tokens, its text, and when it is over."""

from __future__ import annotations

from collections.abc import Container

from llmos.infer import sampler
from llmos.infer.request import FinishReason, GenerationRequest, TokenEvent
from llmos.infer.sampler import Floats, Sampler
from llmos.infer.stopping import StopFinder
from llmos.models import StreamDecoder


class Sequence:
    """``limit`` tokens at most; one of ``ends`` ends it before. ``unread`` are tokens the model has yet to read."""

    def __init__(
        self, request: GenerationRequest, seed: int, decoder: StreamDecoder, limit: int, ends: Container[int]
    ) -> None:
        self.request = request
        self.unread: tuple[int, ...] = request.prompt_tokens
        self.count = 0
        self._sampler = Sampler(request.sampling, seed, request.prompt_tokens)
        self._decoder, self._stops = decoder, StopFinder(request.sampling.stop)
        self._limit, self._ends = limit, ends

    def take(self, logits_V: Floats) -> TokenEvent:
        """Choose the token after those read. Raises EngineError when the logits are not numbers."""
        token = self._sampler.choose(sampler.checked(logits_V))
        self.unread, self.count = (token,), self.count + 1
        asked = self.request.sampling.logprobs
        logprobs = () if asked is None else (sampler.logprob(logits_V, token, asked),)
        text, reason = self._text(token)
        prompt_tokens = len(self.request.prompt_tokens)
        return TokenEvent(self.request.id, (token,), text, logprobs, reason, prompt_tokens, self.count)

    def _text(self, token: int) -> tuple[str, FinishReason | None]:
        ended = token in self._ends and not self.request.sampling.ignore_eos
        text = self._stops.push("" if ended else self._decoder.push(token))
        if self._stops.found is not None:
            return text, "stop"
        if not ended and self.count < self._limit:
            return text, None
        text += self._stops.push(self._decoder.finish())
        stopped = ended or self._stops.found is not None
        return text + self._stops.flush(), "stop" if stopped else "length"
