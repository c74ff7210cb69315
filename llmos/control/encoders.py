"""Services of encoders: what they may ask for."""

from __future__ import annotations

from pathlib import Path

from llmos.errors import UsageError
from llmos.models.encoder_config import is_encoder
from llmos.spec import Service


def check(service: Service, directory: Path) -> None:
    """Raise UsageError, naming the field, if the model in ``directory`` is an encoder and ``service`` asks for what
    only models that generate have."""
    if not is_encoder(directory):
        return
    for name, asked in (
        ("engine", service.engine != "llmos"),
        ("mesh", service.mesh.size > 1),
        ("speculative", service.speculative > 0),
        ("cache_memory", service.cache_memory is not None),
    ):
        if asked:
            what = f"`{name}` is not for `{service.model}`, an encoder, which makes embeddings"
            raise UsageError(what, hint="Leave it out.", param=name)
