"""Gangs are placed whole and tightly, and never where they do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.core.placement import capacity, fits, occupy, place
from llmos.core.types import Gang, Node, Resources
from tests.unit.core.values import cpus

amounts = st.builds(
    Resources,
    cpus=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    gpus=st.sampled_from([0.0, 1.0]),
    memory_bytes=st.integers(0, 2),
    custom=st.sampled_from([(), (("disk", 1.0),)]),
)
frees = st.dictionaries(st.sampled_from("abc"), amounts, max_size=3)


def possible(gang: Gang, free: Mapping[str, Resources]) -> bool:
    """Whether any placement exists, by trying them all."""
    return any(fits(gang, nodes, free) for nodes in product(free, repeat=len(gang.bundles)))


@given(st.lists(amounts, min_size=1, max_size=4).map(lambda bundles: Gang(tuple(bundles))), frees)
def test_what_is_placed_fits(gang: Gang, free: dict[str, Resources]) -> None:
    before = dict(free)
    nodes = place(gang, free)
    assert free == before
    assert nodes is None or fits(gang, nodes, free)


@given(amounts, st.integers(1, 4), frees)
def test_a_gang_of_equal_bundles_is_placed_whenever_that_is_possible(
    bundle: Resources, count: int, free: dict[str, Resources]
) -> None:
    gang = Gang((bundle,) * count)
    assert (place(gang, free) is not None) == possible(gang, free)


@pytest.mark.parametrize(
    ("gang", "free", "expected"),
    [
        (cpus(1), {"a": 4, "b": 1, "c": 2}, ("b",)),  # the tightest node
        (cpus(1, 1), {"b": 2, "a": 2}, ("a", "a")),  # neighbours share a node; equal nodes in the order of their names
        (cpus(1, 1, 1), {"a": 2, "b": 8}, ("a", "a", "b")),
        (cpus(1, 4), {"a": 4, "b": 2}, ("b", "a")),  # the large one chooses first, and each keeps its rank
        (cpus(3, 3), {"a": 5, "b": 2}, None),  # all or none
        (cpus(1), {}, None),
    ],
)
def test_the_choice(gang: Gang, free: dict[str, float], expected: tuple[str, ...] | None) -> None:
    assert place(gang, {id: Resources(cpus=amount) for id, amount in free.items()}) == expected


def test_jobs_without_gpus_keep_away_from_them() -> None:
    free = {"gpu": Resources(cpus=2, gpus=1), "plain": Resources(cpus=8)}
    assert place(cpus(1), free) == ("plain",)
    assert place(Gang((Resources(cpus=1, gpus=1),)), free) == ("gpu",)


def test_ten_tenths_fit_into_one() -> None:
    gang = cpus(*[0.1] * 10)
    assert place(gang, {"a": Resources(cpus=1)}) == ("a",) * 10
    assert place(cpus(*[0.1] * 11), {"a": Resources(cpus=1)}) is None


@pytest.mark.parametrize(
    ("wanted", "free", "expected"),
    [
        (Resources(cpus=1), Resources(cpus=1), True),
        (Resources(gpus=1), Resources(cpus=1), False),
        (Resources(memory_bytes=2), Resources(memory_bytes=1), False),
        (Resources(custom=(("disk", 1.0),)), Resources(custom=(("disk", 1.0), ("tpu", 1.0))), True),
        (Resources(custom=(("disk", 1.0),)), Resources(custom=(("tpu", 1.0),)), False),
    ],
)
def test_what_fits_in(wanted: Resources, free: Resources, expected: bool) -> None:
    assert wanted.fits_in(free) is expected


@given(amounts, amounts)
def test_what_is_given_and_taken_back_is_there_again(one: Resources, other: Resources) -> None:
    again = one + other - other
    assert again.fits_in(one) and one.fits_in(again)
    assert one.fits_in(one + other) and other.fits_in(one + other)


def test_capacity_is_what_foreign_work_leaves_on_nodes_that_take_work() -> None:
    taken = Node("a", Resources(cpus=4), foreign=Resources(cpus=1))
    assert capacity([taken, Node("b", Resources(cpus=4), draining=True)]) == {"a": Resources(cpus=3)}


def test_occupying_skips_unknown_nodes_and_fits_needs_all_of_them() -> None:
    free = {"a": Resources(cpus=2)}
    occupy(free, cpus(1, 1), ("a", "gone"))
    assert free == {"a": Resources(cpus=1)}
    assert fits(cpus(1), ("a",), free)
    assert not fits(cpus(1), ("gone",), free)
    assert not fits(cpus(1, 1), ("a",), free)
    assert not fits(cpus(1, 1), ("a", "a"), free)
