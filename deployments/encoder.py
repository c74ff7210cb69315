"""One copy of an encoder: its engine, made of what the service says."""

from __future__ import annotations

from pathlib import Path

from llmos.control.encoders import check
from llmos.infer.encoder import EncoderEngine
from llmos.spec import Service


def encoder_engine(service: Service, model_dir: str, device: str) -> EncoderEngine:
    """The engine for the encoder in ``model_dir``, in a process of its own. Raises UsageError for a service that wants
    what only generating models have, and what EncoderEngine raises."""
    check(service, Path(model_dir))
    return EncoderEngine(
        model_dir,
        process=True,
        max_queue=service.max_queue,
        dtype=service.dtype,
        device=device,
        threads=service.threads,
        cores=max(1, int(service.resources.cpus)),
        max_batch=service.max_batch,
        token_budget=service.token_budget,
        context_length=service.context_length,
    )
