"""Which rank stands where, which layers are whose, and what cannot be spread."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.errors import UsageError
from llmos.models import ModelConfig
from llmos.parallel.layers import split_layers
from llmos.parallel.mesh import AXES, RankMesh
from llmos.parallel.model import Layout, check
from llmos.parallel.world import World

SHAPE = ModelConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=48,
    num_layers=4,
    num_heads=8,
    num_kv_heads=2,
    head_dim=4,
    max_position=64,
)
LAYOUT = Layout(rows=1, share=8, length=32)
sizes = st.fixed_dictionaries({axis: st.integers(1, 4) for axis in AXES})


@given(sizes)
def test_every_place_has_one_rank_and_tp_ranks_are_neighbours(axes: dict[str, int]) -> None:
    size = math.prod(axes.values())
    meshes = [RankMesh(World(rank, size), **axes) for rank in range(size)]
    assert len({tuple(mesh.place.values()) for mesh in meshes}) == size
    for first in range(0, size, axes["tp"]):
        group = meshes[first : first + axes["tp"]]
        assert [mesh.place["tp"] for mesh in group] == list(range(axes["tp"]))
        assert len({(mesh.place["pp"], mesh.place["dp"], mesh.place["fsdp"]) for mesh in group}) == 1


@given(sizes, st.integers(0, 50))
def test_ranks_that_report_read_everything_once(axes: dict[str, int], count: int) -> None:
    size = math.prod(axes.values())
    meshes = [RankMesh(World(rank, size), **axes) for rank in range(size)]
    assert [item for mesh in meshes if mesh.reports for item in mesh.share(count)] == list(range(count))


@given(st.integers(1, 64), st.integers(1, 16), st.floats(0, 20))
def test_every_layer_has_one_stage_and_no_stage_is_empty(layers: int, stages: int, output_cost: float) -> None:
    stages = min(stages, layers)
    cuts = split_layers(layers, stages, output_cost)
    assert [layer for cut in cuts for layer in cut] == list(range(layers))
    assert len(cuts) == stages and all(cuts)


def test_the_last_stage_has_fewer_layers_for_the_output_matrix() -> None:
    assert [len(cut) for cut in split_layers(30, 2, 8.0)] == [19, 11]
    assert [len(cut) for cut in split_layers(7, 3, 0.4)] == [3, 2, 2]
    assert [len(cut) for cut in split_layers(4, 2, 100.0)] == [3, 1]


def _mesh(**axes: int) -> RankMesh:
    return RankMesh(World(0, math.prod(axes.values())), **axes)


@pytest.mark.parametrize(
    ("axes", "layout", "message"),
    [
        ({"tp": 3}, {}, "`tp: 3` does not divide the model's 8 heads"),
        ({"tp": 4}, {}, "`tp: 4` does not divide the model's 2 key and value heads"),
        ({"tp": 2}, {"length": 33}, "`tp: 2` does not divide `sequence_length: 33`"),
        ({"pp": 8}, {}, "8 stages (pp 8 × 1 a rank) need as many layers: the model has 4"),
        ({"pp": 4}, {"stages_per_rank": 2}, "8 stages (pp 4 × 2 a rank) need as many layers: the model has 4"),
        ({"pp": 4}, {"rows": 4}, "8 sequences of a rank in micro-batches of 4 are 2: expected at least as many"),
        ({"pp": 2}, {"rows": 3}, "8 sequences of a rank in micro-batches of 3: expected parts of one size"),
        ({"pp": 2}, {"share": 5, "schedule": "interleaved"}, "are 5: `schedule: interleaved` needs a multiple of 2"),
    ],
)
def test_what_cannot_be_spread_is_refused_with_the_numbers(
    axes: dict[str, int], layout: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        check(SHAPE, _mesh(**axes), dataclasses.replace(LAYOUT, **layout))
    assert message in caught.value.message and caught.value.param == "mesh"


@pytest.mark.parametrize(("tp", "vocab_size"), [(4, 3), (4, 6)])
def test_a_vocabulary_of_which_a_rank_would_have_nothing_is_refused(tp: int, vocab_size: int) -> None:
    """Of 6 tokens 4 ranks would have 2, 2, 2 and none."""
    shape = dataclasses.replace(SHAPE, num_kv_heads=tp)
    with pytest.raises(UsageError, match=f"`tp: {tp}` leaves a rank nothing of the vocabulary's {vocab_size} tokens"):
        check(dataclasses.replace(shape, vocab_size=vocab_size), _mesh(tp=tp), LAYOUT)
    check(dataclasses.replace(shape, vocab_size=7), _mesh(tp=tp), LAYOUT)


def test_ranks_that_do_not_make_the_mesh() -> None:
    with pytest.raises(UsageError, match="a mesh of pp 2 × tp 2 needs 4 ranks: found 6"):
        RankMesh(World(0, 6), tp=2, pp=2)
