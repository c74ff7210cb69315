"""Every mesh computes what one process computes: the same losses, the same weights.

Eight ranks are started once and train one job after the other, each on as many of them as its mesh has. The tests
marked slow do so for the product of meshes with schedules, accumulation and activation checkpointing.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from llmos.layout import Layout
from llmos.models import ModelConfig
from llmos.parallel.world import World
from llmos.train.loop import Run, train

RANKS = int(os.environ.get("TEST_RANKS", "8"))
STEPS = 20
BATCH = 8
SHAPE = {
    "vocab_size": 300,  # the tokenizer's size replaces it
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "max_position": 64,
}
ALONE = [{axis: 2} for axis in ("dp", "fsdp", "tp", "pp")]
PAIRS = [{a: 2, b: 2} for a, b in itertools.combinations(("dp", "fsdp", "tp", "pp"), 2)]
FULL = [{"fsdp": 2, "tp": 2, "pp": 2}, {"dp": 2, "tp": 2, "pp": 2}, {"dp": 2, "fsdp": 2, "tp": 2}]
MESHES = [*ALONE, *PAIRS, *FULL]


def _name(mesh: dict[str, int]) -> str:
    return "-".join(f"{axis}{size}" for axis, size in mesh.items())


def _child(rank: int, directory: str, runs: Sequence[tuple[Run, int]]) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    store = dist.FileStore(f"{directory}/store", RANKS)
    for number, (run, size) in enumerate(runs):
        if rank < size:
            here = dist.PrefixStore(str(number), store)
            # ranks that the jobs before did not need wait here for those that they did
            dist.init_process_group("gloo", store=here, rank=rank, world_size=size, timeout=timedelta(minutes=30))
            try:
                train(run, World.current())
            except BaseException:
                run.attempt.root.joinpath(f"error-{rank}").write_text(traceback.format_exc())
                os._exit(1)
            dist.destroy_process_group()


class Jobs:
    """Jobs on different meshes, and what came of them."""

    def __init__(self, root: Path, trainer: Any) -> None:
        self.root, self._trainer = root, trainer
        self.runs: dict[str, tuple[Run, int]] = {}
        root.mkdir(exist_ok=True)
        for name, tied in (("tied", True), ("untied", False)):
            (root / name).mkdir()
            (root / name / "config.json").write_text(json.dumps(ModelConfig(**SHAPE, tie_embeddings=tied).to_hf()))

    def add(self, name: str, mesh: dict[str, int], tied: bool = True, **changes: Any) -> None:
        """A job, in few micro-batches: each costs tp ranks a hundred collectives."""
        share = BATCH // (mesh.get("dp", 1) * mesh.get("fsdp", 1))
        fields = {
            "model": {"config": str(self.root / ("tied" if tied else "untied"))},
            "steps": STEPS,
            "batch_size": BATCH,
            "sequence_length": 16,
            "micro_batch_size": share // mesh.get("pp", 1),
            "checkpoint": {"every_steps": STEPS // 2},
            "mesh": mesh,
        }
        job = self._trainer.job(**(fields | changes))
        dirs = Layout(self.root / "state" / name).job("tiny")
        dirs.attempt(1).root.mkdir(parents=True, exist_ok=True)
        self.runs[name] = (Run(job, dirs, dirs.attempt(1), self._trainer.layout.data), job.placed_mesh.size)

    def train(self) -> None:
        """Run all, on ranks that start once."""
        context = multiprocessing.get_context("forkserver")  # torch is imported once, not by each rank
        context.set_forkserver_preload(["llmos.train.loop"])
        args = str(self.root), list(self.runs.values())
        ranks = [context.Process(target=_child, args=(rank, *args), daemon=True) for rank in range(RANKS)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        (self.root / "store").unlink()
        errors = [path.read_text() for run, _ in self.runs.values() for path in run.attempt.root.glob("error-*")]
        assert [process.exitcode for process in ranks] == [0] * RANKS, "\n".join(errors)

    def rows(self, name: str) -> list[dict[str, float]]:
        return [json.loads(line) for line in self.runs[name][0].attempt.metrics.read_text().splitlines()]

    def losses(self, name: str) -> list[float]:
        return [row["loss"] for row in self.rows(name)]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.runs[name][0].job_dirs.export / "model.safetensors")

    def check_equal(self, name: str, reference: str) -> None:
        for ours, theirs in zip(self.rows(name), self.rows(reference), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
        assert self.rows(name)[-1]["validation_loss"] == pytest.approx(
            self.rows(reference)[-1]["validation_loss"], rel=1e-5
        )
        ours, theirs = self.weights(name), self.weights(reference)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.allclose(ours[key], theirs[key], rtol=0, atol=1e-4), key


TrainerIn = Callable[[Path], Any]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, short_trainer_in: TrainerIn) -> Jobs:
    root = tmp_path_factory.mktemp("meshes")
    made = Jobs(root, short_trainer_in(root / "data"))
    made.add("one", {})
    made.add("untied", {}, tied=False)
    for mesh in MESHES:
        made.add(_name(mesh), mesh)
    looped = {"schedule": "zero_bubble", "stages_per_rank": 2}
    made.add("untied-zero", {"pp": 2}, tied=False, pipeline=looped, activation_checkpointing="full")
    made.add("selective", {"fsdp": 2}, activation_checkpointing="selective", micro_batch_size=1)
    made.train()
    return made


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mesh", MESHES, ids=_name)
def test_equals_one_process(jobs: Jobs, mesh: dict[str, int]) -> None:
    jobs.check_equal(_name(mesh), "one")


def test_looped_stages_and_recomputation_change_nothing(jobs: Jobs) -> None:
    jobs.check_equal("untied-zero", "untied")
    jobs.check_equal("selective", "one")


def test_a_checkpoint_continues_on_another_mesh(jobs: Jobs, short_trainer_in: TrainerIn, tmp_path: Path) -> None:
    """From the middle of a run on fsdp × tp × pp to one rank, in this process."""
    run, _ = jobs.runs["fsdp2-tp2-pp2"]
    again = Jobs(tmp_path / "again", short_trainer_in(jobs.root / "data"))
    again.add("one", {}, model={"config": str(jobs.root / "tied")})
    half, _ = again.runs["one"]
    shutil.copytree(run.job_dirs.checkpoints, half.job_dirs.checkpoints)
    shutil.rmtree(half.job_dirs.checkpoints / f"step-{STEPS:08d}")
    train(half, World())
    assert again.losses("one") == pytest.approx(jobs.losses("one")[STEPS // 2 :], rel=1e-5)


PRODUCT = list(
    itertools.product(
        [{"pp": 2}, {"pp": 4}, {"pp": 2, "tp": 2}, {"fsdp": 2, "pp": 2}, {"fsdp": 2, "tp": 2, "pp": 2}],
        ["gpipe", "1f1b", "interleaved", "zero_bubble"],
        ["none", "full"],
    )
)
PRECISIONS = [("bf16", 3e-3), ("bf16_weights", 1e-2), ("fp16", 1e-2)]


def _product_name(case: tuple[dict[str, int], str, str]) -> str:
    return f"{_name(case[0])}-{case[1]}-{case[2]}"


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory, short_trainer_in: TrainerIn) -> Jobs:
    root = tmp_path_factory.mktemp("product")
    made = Jobs(root, short_trainer_in(root / "data"))
    made.add("one", {})
    for mesh, schedule, recompute in PRODUCT:
        looped = schedule in ("interleaved", "zero_bubble") and mesh["pp"] == 2
        pipeline = {"schedule": schedule, "stages_per_rank": 2 if looped else 1}
        name = _product_name((mesh, schedule, recompute))
        made.add(name, mesh, pipeline=pipeline, activation_checkpointing=recompute, micro_batch_size=1)
    for mesh, recompute in itertools.product(MESHES, ("none", "selective")):
        name = f"{_name(mesh)}-accumulated-{recompute}"
        made.add(name, mesh, micro_batch_size=1, activation_checkpointing=recompute)
    for (precision, _), mesh in itertools.product(PRECISIONS, [{}, *ALONE]):
        made.add(f"{precision}-{_name(mesh)}", mesh, precision=precision)
    for name in ("sgd", "muon"):
        made.add(name, {}, optimizer={"name": name, "warmup_steps": 3})
        made.add(f"{name}-pp2", {"dp": 2, "pp": 2}, optimizer={"name": name, "warmup_steps": 3})
    made.train()
    return made


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_product_equals_one_process(product: Jobs) -> None:
    for case in PRODUCT:
        product.check_equal(_product_name(case), "one")
    for mesh, recompute in itertools.product(MESHES, ("none", "selective")):
        product.check_equal(f"{_name(mesh)}-accumulated-{recompute}", "one")
    product.check_equal("sgd-pp2", "sgd")
    assert product.losses("muon-pp2") == pytest.approx(product.losses("muon"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("precision", "tolerance"), PRECISIONS)
def test_half_precision_stays_close_on_every_axis(product: Jobs, precision: str, tolerance: float) -> None:
    exact = product.losses("one")
    for mesh in ({}, *ALONE):
        assert product.losses(f"{precision}-{_name(mesh)}") == pytest.approx(exact, rel=tolerance)
