"""How much may be asked of ``/v1``: by a key, a tenant, or of a service."""

from __future__ import annotations

from pydantic import Field

from llmos.spec.base import PositiveInt, Strict


class Limits(Strict):
    """The most that may be asked within any minute, and at once; more gets a 429. What is absent is not bounded."""

    requests_per_min: PositiveInt | None = Field(default=None, description="requests a minute")
    tokens_per_min: PositiveInt | None = Field(default=None, description="tokens a minute, of prompts and answers")
    concurrency: PositiveInt | None = Field(default=None, description="requests at once")
