"""Every mesh computes what one process computes: the same losses, the same weights.

The tests marked slow show it for the product of meshes with schedules, accumulation and activation checkpointing.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmos.parallel.world import World
from llmos.train.loop import train
from tests.unit.train.mesh_jobs import STEPS, Jobs, TrainerIn, name_of

ALONE = [{axis: 2} for axis in ("dp", "fsdp", "tp", "pp")]
PAIRS = [{a: 2, b: 2} for a, b in itertools.combinations(("dp", "fsdp", "tp", "pp"), 2)]
FULL = [{"fsdp": 2, "tp": 2, "pp": 2}, {"dp": 2, "tp": 2, "pp": 2}, {"dp": 2, "fsdp": 2, "tp": 2}]
MESHES = [*ALONE, *PAIRS, *FULL]
COMPILED = [{"fsdp": 2}, {"tp": 2}, {"pp": 2}]
LOOPED = {"schedule": "zero_bubble", "stages_per_rank": 2}
LORA = {"rank": 1, "alpha": 8.0, "targets": ["q_proj", "o_proj", "up_proj", "down_proj"], "save_adapter": True}
LORA_MESHES = [{"fsdp": 2}, {"tp": 2}, {"dp": 2, "fsdp": 2}, {"tp": 2, "pp": 2}, FULL[0]]


def _add_documents(jobs: Jobs, name: str, mesh: dict[str, int], mask: str = "documents", **changes: Any) -> None:
    """A job on many short documents."""
    data = {"path": str(jobs.documents), "vocab_size": 300, "validation_fraction": 0.1, "packing": {"mask": mask}}
    jobs.add(name, mesh, "shallow", data=data, **changes)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, short_trainer_in: TrainerIn) -> Jobs:
    made = Jobs(tmp_path_factory.mktemp("meshes"), short_trainer_in)
    made.add("one", {}, "shallow")
    for mesh in MESHES:
        made.add(name_of(mesh), mesh, "shallow")
    made.add("untied", {}, "untied")
    made.add("untied-zero", {"tp": 2, "pp": 2}, "untied", pipeline=LOOPED, activation_checkpointing="full")
    made.add("selective", {"fsdp": 2}, "shallow", activation_checkpointing="selective", micro_batch_size=1)
    _add_documents(made, "unmasked", {}, mask="none")
    _add_documents(made, "masked", {})
    _add_documents(made, "masked-tp2-pp2", {"tp": 2, "pp": 2})
    made.add("lora", {}, base="one", lora=LORA)
    for mesh in LORA_MESHES:
        made.add(f"lora-{name_of(mesh)}", mesh, base="one", lora=LORA)
    made.train()
    return made


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mesh", MESHES, ids=name_of)
def test_equals_one_process(jobs: Jobs, mesh: dict[str, int]) -> None:
    jobs.check_equal(name_of(mesh), "one")


def test_looped_stages_and_recomputation_change_nothing(jobs: Jobs) -> None:
    jobs.check_equal("untied-zero", "untied")
    jobs.check_equal("selective", "one")


def test_documents_are_masked_whatever_the_mesh(jobs: Jobs) -> None:
    jobs.check_equal("masked-tp2-pp2", "masked")
    assert jobs.losses("masked") != pytest.approx(jobs.losses("unmasked"), rel=1e-3)


def test_adapters_are_trained_and_exported_whatever_the_mesh(jobs: Jobs) -> None:
    """Of rank 1: one of two fsdp ranks holds nothing of the first matrix of each."""
    before, after = jobs.weights("one"), jobs.weights("lora")
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(LORA["targets"])
    expected = load_file(jobs.runs["lora"][0].job_dirs.adapter / "adapter_model.safetensors")
    for name in (f"lora-{name_of(mesh)}" for mesh in LORA_MESHES):
        jobs.check_equal(name, "lora")
        adapter = load_file(jobs.runs[name][0].job_dirs.adapter / "adapter_model.safetensors")
        assert adapter.keys() == expected.keys()
        for key, matrix in adapter.items():
            assert torch.allclose(matrix, expected[key], rtol=0, atol=1e-4), (name, key)


@pytest.mark.parametrize(("name", "reference"), [("fsdp2-tp2-pp2", "one"), ("lora-fsdp2-tp2-pp2", "lora")])
def test_a_checkpoint_continues_on_another_mesh(
    jobs: Jobs, short_trainer_in: TrainerIn, tmp_path: Path, name: str, reference: str
) -> None:
    """From the middle of a run on many ranks to one, in this process."""
    again = Jobs(tmp_path / "again", short_trainer_in)
    again.runs["one"] = jobs.runs["one"]
    plain = {"model": {"config": str(jobs.root / "shallow")}}
    again.add("half", {}, **({"base": "one", "lora": LORA} if reference == "lora" else plain))
    half, _ = again.runs["half"]
    shutil.copytree(jobs.runs[name][0].job_dirs.checkpoints, half.job_dirs.checkpoints)
    shutil.rmtree(half.job_dirs.checkpoints / f"step-{STEPS:08d}")
    train(half, World())
    assert again.losses("half") == pytest.approx(jobs.losses(reference)[STEPS // 2 :], rel=1e-5)


SCHEDULES = ["gpipe", "1f1b", "interleaved", "zero_bubble"]
PRODUCT = list(
    itertools.product(
        [{"pp": 2}, {"pp": 4}, {"pp": 2, "tp": 2}, {"dp": 2, "pp": 2}, {"fsdp": 2, "pp": 2}, FULL[0]],
        SCHEDULES,
        ["none", "full"],
    )
)
PRECISIONS = [("bf16", 3e-3), ("bf16_weights", 1e-2), ("fp16", 1e-2)]


def _product_name(case: tuple[dict[str, int], str, str]) -> str:
    return f"{name_of(case[0])}-{case[1]}-{case[2]}"


def _pipeline(mesh: dict[str, int], schedule: str) -> dict[str, Any]:
    looped = schedule in ("interleaved", "zero_bubble") and mesh["pp"] == 2
    return {"schedule": schedule, "stages_per_rank": 2 if looped else 1}


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory, short_trainer_in: TrainerIn) -> Jobs:
    made = Jobs(tmp_path_factory.mktemp("product"), short_trainer_in)
    made.add("one", {})
    for mesh, schedule, recompute in PRODUCT:
        name, pipeline = _product_name((mesh, schedule, recompute)), _pipeline(mesh, schedule)
        made.add(name, mesh, pipeline=pipeline, activation_checkpointing=recompute, micro_batch_size=1)
    for mesh, recompute in itertools.product(MESHES, ("none", "selective")):
        name = f"{name_of(mesh)}-accumulated-{recompute}"
        made.add(name, mesh, micro_batch_size=1, activation_checkpointing=recompute)
    for (precision, _), mesh in itertools.product(PRECISIONS, [{}, *ALONE]):
        made.add(f"{precision}-{name_of(mesh)}", mesh, precision=precision)
    for name in ("sgd", "muon"):
        made.add(name, {}, optimizer={"name": name, "warmup_steps": 3})
        made.add(f"{name}-pp2", {"dp": 2, "pp": 2}, optimizer={"name": name, "warmup_steps": 3})
    made.add("adapted", {}, base="one", lora=LORA)
    for mesh in MESHES:
        made.add(f"adapted-{name_of(mesh)}", mesh, base="one", lora=LORA, micro_batch_size=1)
    for schedule in SCHEDULES:
        options = {"pipeline": _pipeline({"pp": 2}, schedule), "micro_batch_size": 1}
        made.add(f"adapted-{schedule}", {"tp": 2, "pp": 2}, base="one", lora=LORA, **options)
    for recompute in ("selective", "full"):
        made.add(f"adapted-{recompute}", FULL[0], base="one", lora=LORA, activation_checkpointing=recompute)
    made.train()
    return made


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_compiled_layers_compute_the_same(short_trainer_in: TrainerIn, tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, short_trainer_in)
    jobs.add("one", {})
    for mesh in COMPILED:
        jobs.add(f"compiled-{name_of(mesh)}", mesh, compile=True)
    jobs.train()
    for mesh in COMPILED:
        assert jobs.losses(f"compiled-{name_of(mesh)}") == pytest.approx(jobs.losses("one"), rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_product_equals_one_process(product: Jobs) -> None:
    for case in PRODUCT:
        product.check_equal(_product_name(case), "one")
    for mesh, recompute in itertools.product(MESHES, ("none", "selective")):
        product.check_equal(f"{name_of(mesh)}-accumulated-{recompute}", "one")
    product.check_equal("sgd-pp2", "sgd")
    assert product.losses("muon-pp2") == pytest.approx(product.losses("muon"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_adapters_equal_those_of_one_process_on_every_mesh(product: Jobs) -> None:
    for name in (*map(name_of, MESHES), *SCHEDULES, "selective", "full"):
        product.check_equal(f"adapted-{name}", "adapted")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("precision", "tolerance"), PRECISIONS)
def test_half_precision_stays_close_on_every_axis(product: Jobs, precision: str, tolerance: float) -> None:
    exact = product.losses("one")
    for mesh in ({}, *ALONE):
        assert product.losses(f"{precision}-{name_of(mesh)}") == pytest.approx(exact, rel=tolerance)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_gradients_summed_in_bf16_stay_close(short_trainer_in: TrainerIn, tmp_path: Path) -> None:
    jobs, meshes = Jobs(tmp_path, short_trainer_in), ({"dp": 2}, {"dp": 2, "fsdp": 2}, {"dp": 2, "pp": 2})
    jobs.add("one", {})
    for mesh in meshes:
        jobs.add(f"reduced-{name_of(mesh)}", mesh, gradient_reduction="bf16")
    jobs.train()
    for mesh in meshes:
        losses, exact = jobs.losses(f"reduced-{name_of(mesh)}"), jobs.losses("one")
        assert losses == pytest.approx(exact, rel=3e-3)
        assert losses != exact  # or they were not summed in bf16


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory, short_trainer_in: TrainerIn) -> Jobs:
    made = Jobs(tmp_path_factory.mktemp("documents"), short_trainer_in)
    _add_documents(made, "masked", {})
    for mesh in MESHES:
        _add_documents(made, f"masked-{name_of(mesh)}", mesh)
    for schedule in ("gpipe", "zero_bubble"):
        pipeline = {"schedule": schedule}
        _add_documents(made, f"masked-{schedule}", {"dp": 2, "pp": 2}, pipeline=pipeline, micro_batch_size=1)
    made.train()
    return made


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_masked_documents_equal_one_process_on_every_mesh(documents: Jobs) -> None:
    for name in (*map(name_of, MESHES), "gpipe", "zero_bubble"):
        documents.check_equal(f"masked-{name}", "masked")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_other_families_equal_one_process(
    tmp_path_factory: pytest.TempPathFactory, short_trainer_in: TrainerIn
) -> None:
    made = Jobs(tmp_path_factory.mktemp("families"), short_trainer_in)
    meshes = [{"tp": 2}, {"fsdp": 2, "tp": 2, "pp": 2}]
    for family in ("qwen2", "qwen3"):
        made.add(family, {}, family)
        for mesh in meshes:
            made.add(f"{family}-{name_of(mesh)}", mesh, family)
        made.add(f"{family}-zero", {"tp": 2, "pp": 2}, family, pipeline={"schedule": "zero_bubble"}, micro_batch_size=1)
    made.train()
    for family in ("qwen2", "qwen3"):
        for name in (*map(name_of, meshes), "zero"):
            made.check_equal(f"{family}-{name}", family)
