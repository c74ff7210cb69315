"""What an adapter sees anew in each tick, as the values of the last tick where it is still the same: ``plan`` tells
by identity what it need not work out again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from llmos.core.types import Snapshot

T = TypeVar("T")


def steady(seen: Snapshot, before: Snapshot) -> Snapshot:
    """``seen``, made of the values of ``before`` where they are equal."""
    known = {node.id: node for node in before.nodes}
    nodes = tuple(_same(node, known.get(node.id)) for node in seen.nodes)
    attempts, services = _each(seen.attempts, before.attempts), _each(seen.services, before.services)
    return replace(seen, nodes=_same(nodes, before.nodes), attempts=attempts, services=services)


def _each(now: Mapping[str, T], before: Mapping[str, T]) -> dict[str, T]:
    return {id: _same(value, before.get(id)) for id, value in now.items()}


def _same(now: T, before: T | None) -> T:
    return now if now is before or before is None or now != before else before
