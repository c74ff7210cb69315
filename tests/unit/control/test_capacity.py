"""``mesh: auto`` becomes the fastest mesh that fits, when a job is handed in."""

from __future__ import annotations

from typing import Any

import pytest

from llmos.control.capacity import hardware_of, model_shape, placed, training_of, ways
from llmos.errors import UsageError
from llmos.spec import Mesh, TrainJob, parse
from tests.unit.control.world import World


def job(**fields: Any) -> TrainJob:
    spec = {"kind": "TrainJob", "name": "a", "model": {"preset": "tiny"}, "data": {"path": "/text"}, "steps": 3}
    found = parse({**spec, "output": {"model": "a"}, **fields})
    assert isinstance(found, TrainJob)
    return found


def test_auto_becomes_the_fastest_mesh_that_specs_allow() -> None:
    assert placed(job(workers={"min": 2, "max": 4}, batch_size=8)).mesh == Mesh(dp=2)
    named = job(mesh={"dp": 4}, batch_size=8)
    assert placed(named) is named


def test_a_job_that_was_handed_in_says_its_mesh(world: World) -> None:
    spec = {"kind": "TrainJob", "name": "a", "model": {"preset": "nano"}, "data": {"path": str(world.text)}}
    view = world.control.submit_job({**spec, "steps": 3, "workers": {"min": 2, "max": 2}, "output": {"model": "a"}})
    assert view["spec"]["mesh"]["dp"] == 2


def test_the_batch_stays_exact_and_the_micro_batch_what_the_trainer_takes() -> None:
    (way,) = ways(wanted := job(batch_size=24), model_shape(wanted), hardware_of(wanted))
    assert way.training.batch == 24
    assert way.training.micro_batch == 4  # 1,024 tokens of 256 each
    (way,) = ways(wanted := job(batch_size=24, micro_batch_size=6), model_shape(wanted), hardware_of(wanted))
    assert way.training.micro_batch == 6


def test_what_does_not_fit_its_memory_is_refused_with_what_would() -> None:
    with pytest.raises(UsageError, match="this does not fit on 1 × CPU") as refused:
        placed(job(resources={"memory": "300MiB"}, micro_batch_size=32))
    assert "micro-batches of" in refused.value.hint
    assert placed(job(resources={"memory": "400MiB"})).mesh == Mesh()


def test_precision_follows_the_job() -> None:
    assert training_of(job(precision="fp32")).precision == "fp32"
    assert training_of(job(resources={"gpus": 1})).precision == "bf16"
    assert hardware_of(job(resources={"gpus": 1})).kind == "H100"
