"""What a request may take before anybody has looked at it: learned from what others of its service took."""

from __future__ import annotations

from dataclasses import dataclass

from llmos.front.limits import Size
from llmos.usage import Tokens

_FADING = 0.05
"""Weight of the newest request in an average: about the last 20 count."""
_TOKENS_PER_BYTE = 0.25  # of English text with a large vocabulary, until the first answer
_ANSWER_TOKENS = 256.0


@dataclass(slots=True)
class _Averages:
    """Of one service: tokens of a prompt per byte of a request's body, and of an answer that nobody bounded."""

    per_byte: float = _TOKENS_PER_BYTE
    answer: float = _ANSWER_TOKENS


class Estimates:
    """Averages of the services that were asked; there are as many as services."""

    def __init__(self) -> None:
        self._averages: dict[str, _Averages] = {}

    def size(self, service: str, body_bytes: int, bound: int | None, answers: int) -> Size:
        """Of a request of ``body_bytes`` for so many ``answers``, each of at most ``bound`` tokens if that is given."""
        averages = self._of(service)
        prompt = round(averages.per_byte * body_bytes)
        answer = round(averages.answer * answers) if bound is None else bound * answers
        return Size(prompt + answer, 0 if bound is None else answer, body_bytes)

    def prompt(self, service: str, body_bytes: int) -> int:
        """Tokens of its prompt, by and large."""
        return round(self._of(service).per_byte * body_bytes)

    def learn(self, service: str, body_bytes: int, bound: int | None, answers: int, tokens: Tokens) -> None:
        """Such a request took ``tokens``."""
        averages = self._of(service)
        averages.per_byte += _FADING * (tokens.prompt / max(1, body_bytes) - averages.per_byte)
        if bound is None:
            averages.answer += _FADING * (tokens.completion / answers - averages.answer)

    def _of(self, service: str) -> _Averages:
        return self._averages.get(service) or self._averages.setdefault(service, _Averages())
