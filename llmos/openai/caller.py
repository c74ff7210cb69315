"""Who asks: what a key stands for, as every part that answers a request sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import urandom


def new_request_id() -> str:
    """A name for a request that no other has."""
    return f"req_{urandom(16).hex()}"


@dataclass(frozen=True, slots=True)
class Caller:
    """``key`` is the id of the key that asks, ``tenant`` whose it is. Nobody finds out about another key's prompts.

    ``request_id`` names the request in answers and logs.
    """

    key: str
    tenant: str = ""
    request_id: str = field(default_factory=new_request_id)
