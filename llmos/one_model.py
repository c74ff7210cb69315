"""What every backend of one model has in common: its card, and what it says about other models."""

from __future__ import annotations

import time
from collections.abc import Sequence

from llmos.errors import ConflictError
from llmos.openai.errors import unknown_model
from llmos.openai.replies import ModelCard, model_card


class OneModel:
    """The part of an ``openai.server.OpenAIBackend`` that is about the model's ``name``."""

    def __init__(self, name: str) -> None:
        self._card = model_card(name, int(time.time()))

    async def models(self) -> Sequence[ModelCard]:
        """The one model."""
        return [self._card]

    async def remove(self, model: str, authorization: str | None) -> None:
        """Raises ConflictError: the model is what this server is there for."""
        raise ConflictError(f"`{model}` is the one model of this server", hint="End the server instead.", param="model")

    def check(self, model: str) -> None:
        """Raises ModelNotServed for another model."""
        if model != self._card["id"]:
            raise unknown_model(model, [self._card["id"]])
