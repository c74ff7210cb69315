"""``mesh: auto`` becomes the fastest mesh that fits, when a job is handed in."""

from __future__ import annotations

from typing import Any

import psutil
import pytest

from llmos.control import machine
from llmos.control.capacity import core_mesh, hardware_of, model_shape, placed, training_of, ways
from llmos.core.capacity import training_memory
from llmos.core.types import Node, Resources
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
    plain, gpu = job(precision="bf16_weights"), job(resources={"gpus": 1})
    assert training_of(plain, model_shape(plain)).precision == "bf16_weights"
    assert training_of(gpu, model_shape(gpu)).precision == "bf16"
    assert hardware_of(gpu).kind == "H100"


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "bf16_weights", "fp16"])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved", "zero_bubble"])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_whatever_a_job_may_say_can_be_estimated(precision: str, schedule: str, recompute: str) -> None:
    fields = {"precision": precision, "activation_checkpointing": recompute, "pipeline": {"schedule": schedule}}
    wanted = job(**fields, mesh={"pp": 2}, batch_size=8, resources={"gpus": 1})
    (way,) = ways(wanted, model_shape(wanted), hardware_of(wanted))
    assert way.memory.total > 0 and way.time.total_s > 0


def test_auto_takes_no_mesh_that_the_job_could_not_name() -> None:
    many = {"workers": {"min": 4, "max": 4}, "batch_size": 16, "resources": {"memory": "120MiB"}}
    assert placed(job(**many)).mesh.tp > 1  # copies do not fit
    whole = placed(job(**many, optimizer={"name": "muon"})).mesh
    assert whole.dp < whole.size == 4 and whole.tp == whole.fsdp == 1


def test_adapters_take_no_gradients_of_the_weights_they_adapt() -> None:
    adapted, shape = job(model={"ref": "base@1"}, lora={"rank": 8}), model_shape(job())
    lora, whole = training_of(adapted, shape), training_of(job(), shape)
    assert 0 < lora.trained < 0.1 and whole.trained == 1.0
    little, much = (training_memory(shape, training, core_mesh(Mesh())) for training in (lora, whole))
    assert little.optimizer == pytest.approx(lora.trained * much.optimizer) and little.weights == much.weights


def test_a_micro_batch_that_is_auto_is_the_largest_that_fits_and_the_batch_stays() -> None:
    bf16 = {"precision": "bf16"}  # `auto` is what this machine's processor is good at
    auto = {"batch_size": 24, "micro_batch_size": "auto", **bf16}
    roomy, tight = (placed(job(**auto, resources={"memory": size})) for size in ("8GiB", "200MiB"))
    assert (roomy.micro_batch_size, roomy.batch_size) == (24, 24)
    assert (tight.micro_batch_size, tight.batch_size) == (8, 24)
    larger = job(batch_size=24, micro_batch_size=24, resources={"memory": "200MiB"}, **bf16)
    with pytest.raises(UsageError, match="this does not fit"):
        placed(larger)
    with pytest.raises(UsageError, match="this does not fit"):
        placed(job(**auto, resources={"memory": "30MiB"}))
    both = placed(job(batch_size="auto", workers={"min": 2, "max": 2}, **bf16))
    assert (both.batch_size, both.micro_batch_size, both.mesh) == (32, 16, Mesh(dp=2))
    pipeline = placed(job(**auto, mesh={"pp": 2}))
    assert pipeline.micro_batch_size == 12  # two ranks need two


def test_gpus_that_hold_the_model_find_out_themselves_what_fits() -> None:
    gpu = {"resources": {"gpus": 1}, "batch_size": 32, "micro_batch_size": "auto"}
    assert placed(job(**gpu, workers={"min": 2, "max": 2})).micro_batch_size == "auto"
    assert placed(job(**gpu, mesh={"fsdp": 2})).micro_batch_size == 16


def test_the_machines_memory_bounds_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**28 < machine.memory_bytes() <= psutil.virtual_memory().total
    monkeypatch.setattr(machine, "_text", lambda path: "max" if "limit" in path else "1000")
    assert machine.memory_bytes() == 1000


def test_auto_takes_no_tensor_parallel_group_that_no_node_can_hold(world: World) -> None:
    tight = {"batch_size": 4, "workers": {"min": 4, "max": 4}}
    memory = {"memory": "80MiB"}  # too little for a whole copy: what is shared is shared by fsdp or tp
    assert placed(job(**tight, resources=memory)).mesh == Mesh(fsdp=2, tp=2)
    small, large = ([Node("one", Resources(cpus=1, memory_bytes=2**30)), *more] for more in ([], [_TWO]))
    assert placed(job(**tight, resources=memory), nodes=small).mesh == Mesh(fsdp=4)
    assert placed(job(**tight, resources=memory), nodes=large).mesh == Mesh(fsdp=2, tp=2)
    nowhere = job(**tight, resources={**memory, "cpus": 8})  # until there is a node that holds a rank
    assert placed(nowhere, nodes=large).mesh == Mesh(fsdp=2, tp=2)
    world.run(1.0)
    spec = {"kind": "TrainJob", "name": "a", "model": {"preset": "tiny"}, "data": {"path": str(world.text)}, "steps": 3}
    for cpus, tp in ((2, 2), (3, 1)):  # of the 4 of its node
        wanted = {**spec, **tight, "output": {"model": "a"}, "resources": {**memory, "cpus": cpus}}
        submitted = world.control.submit_job(wanted, allow_pending=True)  # the node holds two of the four
        assert submitted["spec"]["mesh"].get("tp", 1) == tp


_TWO = Node("two", Resources(cpus=2, memory_bytes=2**30))
