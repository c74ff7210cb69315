"""Placement on matrices is that of ``placement``, and keeps to labels, topologies and strategies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.core.free import Grid, added
from llmos.core.placement import place
from llmos.core.shape import Shape, Shapes
from llmos.core.types import Gang, Node, Resources, Strategy
from tests.unit.core.test_placement import amounts, frees
from tests.unit.core.values import cpus, node

bundles = st.lists(amounts, min_size=1, max_size=4)


def lay(gang: Gang, nodes: list[Node]) -> list[str] | None:
    grid = Grid(nodes)
    columns = Shape(gang, grid).place(grid.usable)
    return None if columns is None else [grid.ids[column] for column in columns]


def at(id: str, cpus: float, **labels: str) -> Node:
    return node(id, cpus, labels=tuple(labels.items()))


@given(bundles, st.sampled_from([1, 1, 2]), frees)
def test_the_choice_is_that_of_the_plain_placement(
    wanted: list[Resources], together: int, free: dict[str, Resources]
) -> None:
    gang = Gang(tuple(bundle for bundle in wanted for _ in range(together)), together)
    expected = place(gang, free)
    assert lay(gang, [Node(id, amount) for id, amount in free.items()]) == (None if expected is None else [*expected])


@given(bundles, frees)
def test_there_is_room_exactly_when_a_place_is_found(wanted: list[Resources], free: dict[str, Resources]) -> None:
    grid = Grid(Node(id, amount) for id, amount in free.items())
    shape = Shape(Gang(tuple(wanted)), grid)
    placed = shape.place(grid.usable)
    assert shape.fits_in(grid.usable) == (placed is not None)
    assert placed is None or shape.fits(placed, grid.usable)


@given(bundles, frees)
def test_what_is_taken_and_given_back_is_there_again(wanted: list[Resources], free: dict[str, Resources]) -> None:
    grid = Grid(Node(id, amount) for id, amount in free.items())
    shape, left = Shape(Gang(tuple(wanted)), grid), grid.usable.copy()
    if (placed := shape.place(left)) is not None:
        held = shape.held(placed)
        held.take(left)
        assert (left >= -1e-6).all()
        assert abs(added([held], left) - grid.usable).max() < 1e-9
        assert held.total == pytest.approx(shape.total)


@pytest.mark.parametrize(
    ("strategy", "sizes", "expected"),
    [
        (Strategy.PACK, {"a": 2, "b": 4, "c": 3}, ["a", "a", "c"]),
        (Strategy.SPREAD, {"a": 2, "b": 4, "c": 3}, ["b", "c", "a"]),
        (Strategy.SPREAD, {"a": 9, "b": 1}, ["a", "a", "b"]),
        (Strategy.STRICT_PACK, {"a": 2, "b": 4, "c": 3}, ["c", "c", "c"]),
        (Strategy.STRICT_PACK, {"a": 2, "b": 2}, None),
    ],
)
def test_strategies(strategy: Strategy, sizes: dict[str, float], expected: list[str] | None) -> None:
    gang = Gang((Resources(cpus=1),) * 3, strategy=strategy)
    found = lay(gang, [node(id, size) for id, size in sizes.items()])
    assert (found and sorted(found)) == (expected and sorted(expected))


def test_labels_choose_among_kinds_of_node() -> None:
    nodes = [at("a", 4, accelerator="A100"), at("h", 4, accelerator="H100"), at("m", 4, accelerator="MI300"), node("x")]
    assert lay(Gang(cpus(1).bundles, labels=(("accelerator", "H100"),)), nodes) == ["h"]
    assert lay(Gang(cpus(4, 4).bundles, labels=(("accelerator", "H100|MI300"),)), nodes) == ["h", "m"]
    assert lay(Gang(cpus(1).bundles, labels=(("accelerator", "TPU"),)), nodes) is None


def test_a_gang_lies_in_the_one_domain_that_it_fills_best() -> None:
    nodes = [at("a", 8, rack="r0"), at("b", 2, rack="r1"), at("c", 2, rack="r1"), node("far", 99)]
    rack = Gang(cpus(1, 1, 1).bundles, topology="rack")
    assert lay(rack, nodes) == ["b", "b", "c"]
    assert lay(Gang(cpus(*[1] * 5).bundles, topology="rack"), nodes) == ["a"] * 5
    assert lay(Gang(cpus(*[1] * 9).bundles, topology="rack"), nodes) is None
    grid = Grid(nodes)
    assert not Shape(rack, grid).fits(grid.locate(["a", "b", "b"]), grid.usable)


def test_equal_gangs_share_a_shape_which_lives_on_with_the_grid() -> None:
    grid = Grid([node("a")])
    shapes = Shapes(grid)
    shape = shapes(cpus(1, 1))
    assert shapes(cpus(1, 1)) is shape and shapes(cpus(1)) is not shape
    assert Shapes(grid, shapes)(cpus(1, 1)) is shape
    assert Shapes(Grid([node("a")]), shapes)(cpus(1, 1)) is not shape


def test_a_kind_of_resource_that_no_node_has_fits_nowhere() -> None:
    assert lay(Gang((Resources(custom=(("tpu", 1.0),)),)), [node("a")]) is None
