"""The values that plans are made of."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from llmos.core.types import Job
from tests.unit.core.values import cpus, job


def test_a_job_but_for_some_fields_is_what_replace_makes_of_it() -> None:
    one = job("a", cpus(1, 2), at=3.0, priority=7, after=("b",), placement=("n", "m"))
    changes: dict[str, Any] = {"attempt": 2, "cancelled": True, "gang": cpus(4)}
    assert one.but(**changes) == replace(one, **changes) and one.but() == one
    for field in fields(Job):
        assert getattr(one.but(**{field.name: "x"}), field.name) == "x"
