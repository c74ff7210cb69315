"""The text of one request, made of the tokens that its steps bring."""

from __future__ import annotations

from llmos.infer.messages import Outcome
from llmos.infer.request import FinishReason, GenerationRequest, TokenEvent
from llmos.infer.stopping import StopFinder
from llmos.models import StreamDecoder


class Answer:
    """``count`` tokens so far. Stop strings count only after ``min_tokens``; end tokens have no text."""

    def __init__(self, request: GenerationRequest, decoder: StreamDecoder) -> None:
        self.request, self.count = request, 0
        self._decoder, self._stops = decoder, StopFinder(request.sampling.stop)

    def take(self, outcome: Outcome) -> TokenEvent:
        """More tokens, up to the one that completes a stop string: with that the event has a ``finish_reason``."""
        text, reason, used = "", None, 0
        for used, token in enumerate(outcome.tokens, 1):
            last = outcome.reason if used == len(outcome.tokens) else None
            more, reason = self._push(token, last)
            text += more
            if reason is not None:
                break
        tokens, logprobs = tuple(outcome.tokens[:used]), tuple(outcome.logprobs[:used])
        prompt = len(self.request.prompt_tokens)
        return TokenEvent(self.request.id, tokens, text, logprobs, reason, prompt, self.count, outcome.cached)

    def _push(self, token: int, last: FinishReason | None) -> tuple[str, FinishReason | None]:
        """The text of ``token``, and why the answer is over; ``last`` is why its tokens are."""
        self.count += 1
        text = "" if last == "stop" else self._decoder.push(token)
        if self.count >= self.request.sampling.min_tokens:
            text = self._stops.push(text)
        if self._stops.found is not None:
            return text, "stop"
        if last is None:
            return text, None
        text += self._stops.push(self._decoder.finish())
        return text + self._stops.flush(), last if self._stops.found is None else "stop"
