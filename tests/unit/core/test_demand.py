"""How many machines, for training and for serving: what is found, and what is said of what cannot be."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import capacity_docs
from benchmarks.published import RUNS, TOLERANCE
from llmos.core.capacity import (
    KINDS,
    SIZES,
    WEIGHTS,
    Demand,
    Load,
    Mesh,
    Training,
    hardware,
    meshes,
    obstacle,
    serve,
    serving_memory,
    shape_of_size,
    step_time,
)
from llmos.core.capacity.meshes import fits
from llmos.errors import UsageError

H100 = hardware("H100")
MODES = ("none", "selective", "full")
TRAINING = Training(1, 1, 8192, precision="bf16_weights")
LOAD = Load(requests_per_s=40, prompt=1000, answer=200, first_token_s=0.5, token_s=0.05)


def demand(size: str = "8B", **changes: Any) -> Demand:
    return Demand(SIZES[size], 1e12, TRAINING, H100, checkpointing=MODES, **changes)


def days(wanted: Demand, ranks: int) -> float:
    return min((wanted.tokens / way.time.tokens_per_s / 86400 for way in wanted.on(ranks)), default=math.inf)


def test_docs_show_what_is_said_now() -> None:
    page = capacity_docs.PAGE.read_text(encoding="utf-8")
    assert page.count("<!-- made: ") >= 5 and "made: published" in page
    assert capacity_docs.made(page) == page, "run `python -m benchmarks.capacity_docs --write`"


def test_a_block_that_nothing_makes_is_refused() -> None:
    with pytest.raises(ValueError, match="made by `ls /`"):
        capacity_docs.made("<!-- made: ls / -->\nno\n<!-- end -->")


def test_a_block_is_replaced_by_what_is_said() -> None:
    made = capacity_docs.made("a\n<!-- made: published -->\ntyped by hand\n<!-- end -->\nb")
    assert "typed by hand" not in made and made.startswith("a\n<!--") and made.endswith("<!-- end -->\nb")
    assert made.count("torchtitan 405B") == 2 and made.count("held out") == 4


def test_six_published_rows_hold_without_being_told_what_was_recomputed() -> None:
    met = {run.name.split(",")[0] for run in RUNS if run.alone and abs(run.alone - 1) <= TOLERANCE}
    assert {"torchtitan 8B", "torchtitan 70B", "torchtitan 405B", "Megatron-Bridge 8B"} <= met
    assert len([run for run in RUNS if run.alone and abs(run.alone - 1) <= TOLERANCE]) >= 6


def test_the_fewest_machines_hold_the_model_and_half_of_them_do_not() -> None:
    for size, ranks in (("1B", 1), ("8B", 4), ("70B", 32)):
        found = demand(size).fewest()
        assert {way.mesh.size for way in found} == {ranks} and all(fits(way.memory, H100) for way in found)
        assert ranks == 1 or not demand(size).on(ranks // 2)
    with pytest.raises(UsageError, match="no number of L4 up to 32768 holds 406B"):
        dataclasses.replace(demand("405B"), kind=hardware("L4"), batch=1).fewest()


@pytest.mark.parametrize("limit", [8, 20, 27, 40, 100])
def test_a_deadline_takes_the_fewest_of_powers_of_two_and_whole_nodes_between_them(limit: int) -> None:
    wanted = demand()
    ranks = wanted.within(limit * 86400)[0].mesh.size
    assert days(wanted, ranks) <= limit
    power = 2 ** math.ceil(math.log2(ranks))
    fewer = [power // 2, *(power * n // 8 for n in (5, 6, 7) if power * n // 8 % 8 == 0 and power > 8)]
    assert all(days(wanted, count) > limit for count in fewer if count < ranks)
    assert ranks % 8 == 0 or ranks < 8


@pytest.mark.parametrize("ranks", [3, 24, 56, 64, 320, 448, 1024])
def test_a_batch_that_is_not_named_divides_among_any_number_of_nodes(ranks: int) -> None:
    found = demand().on(ranks)
    assert {way.training.batch % way.mesh.data for way in found} == {0}
    assert {way.training.batch for way in found} <= set(range(512, 641))
    assert ranks > 128 or any(way.mesh.data == ranks for way in found)


def test_one_mesh_is_looked_at_when_it_is_named() -> None:
    mesh = Mesh(fsdp=4, tp=2)
    (way,) = demand(mesh=mesh).on(8)
    assert way.mesh == mesh and way == next(other for other in demand().on(8) if other.mesh == mesh)
    (long,) = dataclasses.replace(
        demand(mesh=Mesh(fsdp=8, cp=2)), training=dataclasses.replace(TRAINING, sequence=32768)
    ).on(16)
    assert long.mesh.cp == 2


@pytest.mark.parametrize(
    ("mesh", "changes", "message"),
    [
        (Mesh(tp=3), {}, "tp 3 does not divide the 32 heads"),
        (Mesh(tp=16), {}, "tp 16 does not divide the 8 key and value heads"),
        (Mesh(pp=33), {}, "33 stages are more than the 32 layers"),
        (Mesh(fsdp=3), {"batch": 64}, "a batch of 64 does not divide by dp × fsdp = 3"),
        (Mesh(fsdp=2, pp=4), {"batch": 4}, "pp 4 has 2 sequences to work on"),
        (Mesh(fsdp=8, cp=3), {}, "cp 3 does not divide the 8192 tokens"),
        (Mesh(fsdp=8), {"micro_batch": 7}, "micro-batches of 7 do not divide the 64 sequences"),
        (Mesh(fsdp=2), {}, r"mesh fsdp 2 does not fit on 2 × H100 with 73.6 GB .* takes \d+"),
    ],
)
def test_a_mesh_that_cannot_be_says_why(mesh: Mesh, changes: dict[str, int], message: str) -> None:
    wanted = demand(mesh=mesh, **changes)
    assert not wanted.on(mesh.size)
    with pytest.raises(UsageError, match=message):
        raise wanted.refusal(mesh.size)


def test_tensor_parallel_groups_stay_on_a_node() -> None:
    training = dataclasses.replace(TRAINING, batch=64)
    small = dataclasses.replace(H100, per_node=4)
    assert obstacle(SIZES["8B"], training, Mesh(tp=8), small) == "tp 8 is more than the 4 × H100 of a node"


@given(st.sampled_from([1, 2, 4, 6, 8, 12, 32]), st.sampled_from([4, 24, 256]))
def test_every_mesh_is_listed_or_has_an_obstacle(ranks: int, batch: int) -> None:
    shape, training = SIZES["1B"], dataclasses.replace(TRAINING, batch=batch)
    listed = set(meshes(shape, batch, ranks, H100.per_node))
    divisors = [n for n in range(1, ranks + 1) if ranks % n == 0]
    for dp, fsdp, tp in ((a, b, c) for a in divisors for b in divisors for c in divisors if ranks % (a * b * c) == 0):
        mesh = Mesh(dp, fsdp, tp, ranks // (dp * fsdp * tp))
        if not obstacle(shape, training, mesh, H100):
            assert mesh in listed
        elif mesh in listed:
            assert batch // mesh.data < mesh.pp  # a pipeline that the batch cannot fill


def test_pipelines_have_a_micro_batch_for_each_stage() -> None:
    found = demand(batch=8).on(8)
    assert any(way.mesh.pp > 1 for way in found)
    assert all(way.training.micro_batches(way.mesh) >= way.mesh.pp for way in found)


def test_micro_batches_that_do_not_divide_are_the_reason_that_is_given() -> None:
    with pytest.raises(UsageError, match="micro-batches of 7 sequences do not divide a batch of 512"):
        raise demand(micro_batch=7).refusal(8)


def test_a_sequence_that_is_too_long_is_refused_with_one_that_fits() -> None:
    long = dataclasses.replace(demand(), training=dataclasses.replace(TRAINING, sequence=2**21), batch=8)
    assert not long.on(8)
    hint = long.refusal(8).hint
    shorter = int(hint.split("sequences of ")[1].split(" tokens")[0].replace(",", ""))
    fitting = dataclasses.replace(long, training=dataclasses.replace(TRAINING, sequence=shorter))
    twice = dataclasses.replace(long, training=dataclasses.replace(TRAINING, sequence=2 * shorter))
    assert fitting.on(8) and not twice.on(8)


@given(st.floats(1e6, 1e13))
def test_any_size_has_a_shape_within_4_percent(parameters: float) -> None:
    text = f"{parameters / 1e6:.4f}M" if parameters < 1e9 else f"{parameters / 1e9:.4f}B"
    shape = shape_of_size(text)
    assert shape.num_parameters == pytest.approx(parameters, rel=0.04)
    assert shape.num_heads % shape.num_kv_heads == 0 and shape.num_heads * shape.head_dim == shape.hidden_size
    assert parameters < 1e9 or shape.num_kv_heads == 8  # tensor parallelism can split it 8 ways


def test_replicas_may_be_pipelines_that_share_the_weights() -> None:
    one = serving_memory(SIZES["8B"], 8, 2048)
    four = serving_memory(SIZES["8B"], 8, 2048, tp=2, pp=2)
    assert one.weights == pytest.approx(2 * SIZES["8B"].num_parameters)
    assert one.weights / 4 < four.weights < one.weights / 3 and four.cache < one.cache / 3
    found = {(way.tp, way.pp): way for way in serve(SIZES["8B"], LOAD, H100)}
    assert (1, 2) in found and (2, 1) in found
    assert found[2, 1].first_token_s < found[1, 2].first_token_s  # tp shares each token's work, pp hands it on
    assert all(tp * pp <= H100.per_node for tp, pp in found)


def test_smaller_weights_take_fewer_accelerators_and_are_said_to_fit() -> None:
    ways = {name: serve(SIZES["70B"], LOAD, H100, name)[0] for name in WEIGHTS}
    assert ways["int4"].accelerators <= ways["int8"].accelerators <= ways["bf16"].accelerators
    assert ways["int4"].memory.weights * ways["int4"].tp < ways["bf16"].memory.weights * ways["bf16"].tp / 2
    with pytest.raises(UsageError, match="more than they have") as refused:
        serve(SIZES["405B"], LOAD, H100)
    assert "int8 weights" in refused.value.hint and "H200" in refused.value.hint
    assert serve(SIZES["405B"], dataclasses.replace(LOAD, first_token_s=1), H100, "int8")


@pytest.mark.parametrize("token_s", [0.02, 0.05, 0.2])
def test_more_load_never_takes_fewer_accelerators(token_s: float) -> None:
    loads = [dataclasses.replace(LOAD, requests_per_s=each, token_s=token_s) for each in (0.5, 5, 39, 40, 170, 1000)]
    found = [serve(SIZES["8B"], load, H100)[0].accelerators for load in loads]
    assert found == sorted(found) and found[-1] > 10 * found[0]


def test_a_price_is_of_the_accelerators_and_the_tokens_of_answers() -> None:
    way = serve(SIZES["8B"], LOAD, dataclasses.replace(H100, price=2.0))[0]
    assert way.price_per_hour == 2 * way.accelerators
    assert way.price_per_million == pytest.approx(way.price_per_hour / (40 * 200 * 3600) * 1e6)
    assert serve(SIZES["8B"], LOAD, KINDS["H200"])[0].price_per_million is None


def test_a_faster_kind_is_faster() -> None:
    training = dataclasses.replace(TRAINING, batch=64)
    slow, fast = (step_time(SIZES["8B"], training, Mesh(fsdp=8), hardware(kind)).total_s for kind in ("A100", "H100"))
    assert fast < slow
