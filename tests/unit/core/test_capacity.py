"""The one model of memory and time: against what others published, against what tensors there are, and its order."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import published
from benchmarks.published import RUNS, TOLERANCE, Run
from llmos.core.capacity import (
    CHECKPOINTING,
    KINDS,
    PRECISIONS,
    SCHEDULES,
    SIZES,
    Demand,
    Load,
    Mesh,
    ModelShape,
    Training,
    bubble_fraction,
    calibrated,
    candidates,
    hardware,
    largest_micro_batch,
    meshes,
    recommend,
    serve,
    shape_of_size,
    step_time,
    time,
    training_memory,
)
from llmos.core.capacity.meshes import fits
from llmos.errors import UsageError
from llmos.models import ModelConfig
from llmos.spec import PRESETS

H100 = hardware("H100")
SMALL = ModelShape(2048, 512, 1536, 8, 8, 4, 64)
PRETRAINING = Training(batch=512, micro_batch=1, sequence=8192, precision="bf16_weights")

shapes = st.builds(
    lambda heads, shared, layers, wide, vocab: ModelShape(
        vocab, 64 * heads, 64 * heads * wide, layers, heads, heads // shared, 64
    ),
    st.sampled_from([4, 8, 16]),
    st.sampled_from([1, 2, 4]),
    st.integers(4, 40),
    st.integers(2, 4),
    st.integers(300, 50_000),
)
trainings = st.builds(
    Training,
    batch=st.just(256),
    micro_batch=st.sampled_from([1, 2, 4]),
    sequence=st.sampled_from([128, 1024, 4096]),
    precision=st.sampled_from(sorted(PRECISIONS)),
    checkpointing=st.sampled_from(CHECKPOINTING),
    schedule=st.sampled_from(SCHEDULES),
    stages=st.just(2),
    cpu=st.booleans(),
)
powers = st.sampled_from([1, 2, 4])
split = st.builds(Mesh, dp=powers, fsdp=st.sampled_from([2, 4]), tp=powers, pp=powers)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_published_runs_are_met(run: Run) -> None:
    assert abs(run.ratio - 1) <= TOLERANCE


def test_the_published_table_has_what_was_promised() -> None:
    for size in ("8B", "70B", "405B"):
        for source in ("torchtitan", "Megatron-Bridge"):
            assert any(run.size == size and run.name.startswith(source) for run in RUNS)
    assert len([run for run in RUNS if run.held_out]) >= 2
    assert {run.size for run in RUNS if run.held_out} == {"70B", "405B"}


def test_constants_are_those_of_the_fit_and_held_out_rows_do_not_move_them(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = published.fit()
    in_place = {kind: KINDS[kind].sustained for kind in ("H100-500W", "H100", "H200")}
    shares = {"ATTENTION_SHARE": time.ATTENTION_SHARE, "FP8_SHARE": time.FP8_SHARE}
    assert fitted == pytest.approx({**in_place, **shares}, abs=0.015)
    changed = [dataclasses.replace(run, tokens_per_s=run.tokens_per_s * (0.9 if run.held_out else 1)) for run in RUNS]
    monkeypatch.setattr(published, "RUNS", changed)
    assert published.fit() == fitted
    monkeypatch.setattr(published, "RUNS", [dataclasses.replace(run, held_out=False) for run in changed])
    assert published.fit() != fitted


@pytest.mark.parametrize(("name", "billions"), [("135M", 0.1345), ("1B", 1.236), ("8B", 8.03), ("70B", 70.55)])
def test_sizes_are_the_published_ones(name: str, billions: float) -> None:
    assert SIZES[name].num_parameters / 1e9 == pytest.approx(billions, rel=1e-3)


def test_parameters_are_those_of_the_model() -> None:
    for preset in PRESETS.values():
        config = ModelConfig.from_preset(preset, 1000, None, None)
        assert ModelShape.of(config).num_parameters == config.num_parameters


@pytest.mark.parametrize("text", ["350M", "2.7B", "13B", "33b", "1T"])
def test_any_size_has_a_shape_near_it(text: str) -> None:
    wanted = float(text[:-1]) * {"M": 1e6, "B": 1e9, "T": 1e12}[text[-1].upper()]
    assert shape_of_size(text).num_parameters == pytest.approx(wanted, rel=0.12)


@pytest.mark.parametrize("text", ["8", "B", "0B", "1e99B", "8GB", "-1B", ""])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a size"):
        shape_of_size(text)


@pytest.mark.parametrize(
    ("schedule", "pp", "batch", "percent"),
    [
        *[("1f1b", 4, 8, 27.3), ("gpipe", 4, 8, 27.3), ("interleaved", 4, 8, 15.8), ("zero_bubble", 4, 8, 5.9)],
        *[("1f1b", 4, 16, 15.8), ("interleaved", 4, 16, 8.6), ("zero_bubble", 4, 16, 3.0)],
        *[("1f1b", 8, 32, 17.9), ("interleaved", 8, 32, 9.9), ("zero_bubble", 8, 32, 3.5)],
    ],
)
def test_bubbles_are_those_of_torchs_schedule_tables(schedule: str, pp: int, batch: int, percent: float) -> None:
    training = Training(batch, 1, 128, schedule=schedule, stages=2)
    assert 100 * bubble_fraction(training, Mesh(pp=pp)) == pytest.approx(percent, abs=0.05)


@given(shapes, trainings, split)
def test_more_fsdp_ranks_never_hold_more(shape: ModelShape, training: Training, mesh: Mesh) -> None:
    before = training_memory(shape, training, mesh).total
    assert training_memory(shape, training, dataclasses.replace(mesh, fsdp=2 * mesh.fsdp)).total <= before


@given(shapes, trainings, split)
def test_more_tensor_parallel_ranks_never_hold_more(shape: ModelShape, training: Training, mesh: Mesh) -> None:
    more = dataclasses.replace(mesh, tp=2 * mesh.tp)
    stream = training.micro_batch * training.sequence * shape.hidden_size * training.numbers.number
    gathered = stream if mesh.tp == 1 else 0  # what tp gathers, one rank has anyway
    assert training_memory(shape, training, more).total <= training_memory(shape, training, mesh).total + gathered


@given(shapes, trainings, split)
def test_checkpointing_never_keeps_more_and_never_is_faster(shape: ModelShape, training: Training, mesh: Mesh) -> None:
    ways = [dataclasses.replace(training, checkpointing=mode) for mode in CHECKPOINTING]
    kept = [training_memory(shape, way, mesh).activations for way in ways]
    kind = KINDS["CPU"] if training.numbers.products in KINDS["CPU"].peak else H100
    assert kept == sorted(kept, reverse=True)
    times = [step_time(shape, way, mesh, kind).total_s for way in ways]
    assert times == pytest.approx(sorted(times), rel=1e-9)


@given(shapes, trainings, split)
def test_a_larger_micro_batch_never_holds_less(shape: ModelShape, training: Training, mesh: Mesh) -> None:
    larger = training.with_micro_batch(2 * training.micro_batch)
    smaller = training_memory(shape, training, dataclasses.replace(mesh, pp=1)).total
    assert training_memory(shape, larger, dataclasses.replace(mesh, pp=1)).total >= smaller


@given(shapes, trainings, split)
def test_zero_bubble_is_no_slower_than_interleaved_than_1f1b(shape: ModelShape, training: Training, mesh: Mesh) -> None:
    slow, better, best = (
        bubble_fraction(dataclasses.replace(training, schedule=schedule), mesh)
        for schedule in ("1f1b", "interleaved", "zero_bubble")
    )
    assert best <= better <= slow < 1


@given(shapes, st.sampled_from([1, 2, 6, 8, 12, 64]), st.sampled_from([8, 48, 256]))
def test_meshes_are_exact_and_split_what_they_may(shape: ModelShape, ranks: int, batch: int) -> None:
    found = list(meshes(shape, batch, ranks, per_node=8))
    assert len(found) == len(set(found))
    for mesh in found:
        assert mesh.size == ranks
        assert shape.num_heads % mesh.tp == shape.num_kv_heads % mesh.tp == batch % mesh.data == 0
        assert mesh.pp <= shape.num_layers and mesh.tp <= 8


@given(shapes, trainings, st.sampled_from([1, 2, 4, 8, 16]))
def test_candidates_fit_keep_the_batch_and_are_in_order(shape: ModelShape, training: Training, ranks: int) -> None:
    found = candidates(shape, training, ranks, H100)
    assert found, "every one of these shapes is small"
    times = [way.time.total_s for way in found]
    assert all(slower >= 0.998 * faster for faster, slower in itertools.pairwise(times))
    for way in found:
        assert fits(way.memory, H100)
        share = training.batch // way.mesh.data
        assert share % way.training.micro_batch == 0 and way.training.batch == training.batch


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    training, mesh = dataclasses.replace(PRETRAINING, checkpointing="full"), Mesh(fsdp=8)
    size = largest_micro_batch(SIZES["8B"], training, mesh, H100)
    assert size is not None and 1 < size < 64 and 64 % size == 0
    assert not fits(training_memory(SIZES["8B"], training.with_micro_batch(2 * size), mesh), H100)
    assert largest_micro_batch(SIZES["405B"], training, mesh, H100) is None
    assert largest_micro_batch(SIZES["8B"], training, Mesh(fsdp=7), H100) is None  # 512 sequences do not divide


def test_uneven_stages_cost_what_the_fullest_one_does() -> None:
    even = dataclasses.replace(SMALL, num_layers=8)
    uneven = dataclasses.replace(SMALL, num_layers=9)
    training = Training(batch=64, micro_batch=1, sequence=1024, precision="bf16")
    assert candidates(uneven, training, 4, H100, allowed=lambda mesh: mesh.pp == 4)
    slow, fast = (step_time(shape, training, Mesh(pp=4), H100).compute_s for shape in (uneven, even))
    assert slow > fast


def test_a_model_that_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(UsageError, match=r"at least 1\d\d\.\d GB on each") as refused:
        recommend(SIZES["70B"], PRETRAINING, 8, H100)
    assert "32 × H100" in refused.value.hint
    with pytest.raises(UsageError) as refused:
        recommend(SIZES["8B"], PRETRAINING, 8, dataclasses.replace(H100, memory_bytes=24e9))
    assert "activation checkpointing (mesh" in refused.value.hint and "16 × H100" in refused.value.hint
    with pytest.raises(UsageError) as refused:
        recommend(SIZES["8B"], PRETRAINING, 2, dataclasses.replace(H100, memory_bytes=100e9))
    assert "selective activation checkpointing" in refused.value.hint or "full" in refused.value.hint


def test_a_deadline_takes_the_fewest_machines() -> None:
    demand = Demand(SIZES["8B"], 1e12, PRETRAINING, H100, micro_batch=1, checkpointing=("full",))
    found = demand.within(30 * 86400)
    ranks = found[0].mesh.size
    assert 1e12 / found[0].time.tokens_per_s <= 30 * 86400
    assert 1e12 / demand.on(ranks // 2)[0].time.tokens_per_s > 30 * 86400
    with pytest.raises(UsageError, match="the fastest takes"):
        demand.within(60)


def test_serving_meets_the_load_and_its_promises() -> None:
    load = Load(requests_per_s=50, prompt=1000, answer=200, first_token_s=0.5, token_s=0.03)
    found = serve(SIZES["8B"], load, H100)
    assert [way.accelerators for way in found] == sorted(way.accelerators for way in found)
    for way in found:
        assert way.first_token_s <= load.first_token_s and way.token_s <= load.token_s
        assert way.replicas * way.requests_per_s >= load.requests_per_s and fits(way.memory, H100)
    assert found[0].price_per_million is not None and found[0].price_per_million > 0
    with pytest.raises(UsageError, match="promised are"):
        serve(SIZES["8B"], dataclasses.replace(load, token_s=1e-6), H100)
    with pytest.raises(UsageError, match="more than they have"):
        serve(SIZES["405B"], load, H100)


def test_calibration_takes_the_place_of_constants() -> None:
    measured = {"fp32_flops": 1e11, "bf16_flops": 2e11, "memory_bandwidth": 1e10, "all_reduce_bandwidth": 1e9}
    kind = calibrated(KINDS["CPU"], measured)
    assert kind.sustained_flops("bf16") == 2e11 and kind.intra_bandwidth == 1e9
    assert kind.memory_bytes == KINDS["CPU"].memory_bytes
    with pytest.raises(UsageError, match="no products in fp16"):
        kind.sustained_flops("fp16")


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    assert hardware("h100") is KINDS["H100"]
    with pytest.raises(UsageError, match="expected one of H100, "):
        hardware("H999")
