"""What a worker is told: its rank follows from the node it is on."""

from __future__ import annotations

import pytest

from llmos.train.run import ranks_of


@pytest.mark.parametrize(
    ("found", "nodes", "expected"),
    [
        (["a", "a"], ["a", "a"], [0, 1]),
        (["b", "a"], ["a", "b"], [1, 0]),
        (["b", "b", "a", "a"], ["a", "a", "b", "b"], [2, 3, 0, 1]),
        (["a", "a", "b"], ["b", "a", "a"], [1, 2, 0]),
    ],
)
def test_ranks_are_where_the_plan_has_put_them(found: list[str], nodes: list[str], expected: list[int]) -> None:
    assert ranks_of(found, nodes) == expected
