from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import pytest

from llmos import estimate
from llmos.cli import estimate as cli
from llmos.control.estimate import Question
from llmos.parallel import calibrate
from tests.unit.cli.conftest import Run
from tests.unit.cli.test_jobs import table
from tests.unit.fake_api import NODE, STATUS, FakeApi


def test_estimate_prints_feasible_meshes_fastest_first(llmos: Run) -> None:
    result = llmos("estimate", "8B", "--gpus", "8", "--gpu", "H100", "--tokens", "1T")
    assert result.code == 0
    rows = table(result.out)
    times = [float(row["STEP"].removesuffix(" s")) for row in rows]
    assert times == sorted(times) and rows[0]["PRICE"].startswith("$")
    assert "recommended: the first" in result.err


def test_estimate_in_json_has_everything(llmos: Run) -> None:
    found = json.loads(llmos("estimate", "70B", "--gpus", "64", "--precision", "bf16_weights", "-o", "json").out)
    first = found["recommended"]
    assert found["feasible"][0] == first and first["ranks"] == 64
    memory = first["memory_bytes"]
    assert memory["total"] == pytest.approx(sum(memory.values()) - memory["total"])
    assert first["price"] == pytest.approx(first["accelerator_hours"] * 4.69)
    assert {"bubble", "communication_s", "days", "step_s", "mfu"} <= first.keys()


def test_estimate_finds_the_machines_a_deadline_needs(llmos: Run) -> None:
    found = json.loads(llmos("estimate", "8B", "--tokens", "1T", "--deadline", "30d", "-o", "json").out)
    assert found["recommended"]["days"] <= 30


def test_every_option_of_the_command_is_one_of_python(llmos: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    command = {name: one.default for name, one in inspect.signature(cli.estimate).parameters.items()}
    command["compile"] = command.pop("compiled")
    asked = {field.name: field.default for field in dataclasses.fields(Question)}
    assert {name: command[name] for name in asked} == asked
    assert command.keys() - asked.keys() == {"model", "calibrate", "state_dir", "output"}
    options = ["--gpus", "64", "--batch", "256", "--micro-batch", "2", "--mesh", "fsdp=8,pp=8", "--tokens", "1T"]
    options += ["--deadline", "1000d", "--sequence", "4096", "--precision", "bf16_weights", "--optimizer", "sgd"]
    options += ["--checkpointing", "full", "--schedule", "interleaved", "--stages", "2", "--compile", "--price", "1"]
    named = {"gpus": 64, "batch": 256, "micro_batch": 2, "mesh": "fsdp=8,pp=8", "tokens": "1T", "deadline": "1000d"}
    named |= {"sequence": 4096, "precision": "bf16_weights", "optimizer": "sgd", "checkpointing": "full", "price": 1.0}
    said = json.loads(llmos("estimate", "8B", *options, "-o", "json").out)
    assert said == estimate("8B", schedule="interleaved", stages=2, compile=True, **named)
    serving = {"requests": 3.0, "prompt": 77, "answer": 33, "first_token": 2.0, "per_token": 0.07, "weights": "int8"}
    options = [part for name, value in serving.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert json.loads(llmos("estimate", "8B", *options, "-o", "json").out) == estimate("8B", **serving)


def test_estimate_without_a_number_takes_the_fewest_that_hold_it(llmos: Run) -> None:
    found = json.loads(llmos("estimate", "70B", "-o", "json").out)
    assert found["recommended"]["ranks"] == 32 and found["recommended"]["machines"] == 4
    assert "32 × H100 in 4 machines" in llmos("estimate", "70B").err


def test_estimate_of_one_mesh_as_the_table_names_it(llmos: Run) -> None:
    rows = table(llmos("estimate", "70b", "--gpus", "64").out)
    again = table(llmos("estimate", "70b", "--mesh", rows[1]["MESH"]).out)
    assert again == [rows[1]]
    assert table(llmos("estimate", "70b", "--mesh", rows[1]["MESH"], "--gpus", "64").out) == again


def test_more_stages_of_a_rank_have_a_smaller_bubble(llmos: Run) -> None:
    asked = ("estimate", "8B", "--mesh", "fsdp=4,pp=8", "--batch", "64", "-o", "json")
    plain, interleaved = (
        json.loads(llmos(*asked, *more).out)["recommended"]
        for more in ((), ("--schedule", "interleaved", "--stages", "2"))
    )
    assert interleaved["bubble"] < plain["bubble"]


def test_a_deadline_that_a_number_of_gpus_misses_is_said(llmos: Run) -> None:
    result = llmos("estimate", "8B", "--gpus", "8", "--tokens", "1T", "--deadline", "3d")
    assert result.code == 0 and "longer than 3d" in result.err


def test_what_is_longer_than_the_model_s_positions_is_said(llmos: Run) -> None:
    result = llmos("estimate", "8B", "--requests", "1", "--prompt", "131072", "--first-token", "60")
    assert "longer than the 131,072 positions" in result.err and result.code == 0


def test_estimate_of_serving(llmos: Run) -> None:
    result = llmos("estimate", "8B", "--requests", "40", "--price", "2")
    (first, *_) = table(result.out)
    assert result.code == 0 and int(first["REPLICAS"]) >= 1
    found = json.loads(llmos("estimate", "8B", "--requests", "40", "--price", "2", "-o", "json").out)
    assert found["recommended"]["price_per_hour"] == 2 * found["recommended"]["accelerators"]


def test_estimate_reads_a_config(llmos: Run, tmp_path: Path) -> None:
    config = {"model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2, "num_attention_heads": 4}))
    found = json.loads(llmos("estimate", str(tmp_path), "--gpu", "cpu", "--batch", "4", "-o", "json").out)
    assert found["parameters"] == 2 * 512 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no MODEL was given"),
        (["9X"], "no model `9X`"),
        (["8B", "--gpu", "H1"], "'H1' is not a kind of accelerator"),
        (["8B", "--tokens", "many"], "`--tokens many`"),
        (["8B", "--precision", "fp7"], "`--precision fp7`"),
        (["8B", "--checkpointing", "some"], "`--checkpointing some`"),
        (["8B", "--deadline", "soon"], "`--deadline soon`"),
        (["8B", "--gpu", "A100", "--precision", "fp8"], "A100 has no products in fp8"),
        (["405B", "--gpus", "2"], "What would fit:"),
        (["8B", "--mesh", "tp=3"], "tp 3 does not divide the 32 heads"),
        (["8B", "--mesh", "ep=3"], "`--mesh ep=3`: expected sizes of dp, fsdp, tp, pp and cp"),
        (["8B", "--mesh", "fsdp=0"], "`--mesh fsdp=0`"),
        (["8B", "--mesh", "fsdp=4", "--gpus", "8"], "fsdp 4 are 4 ranks"),
        (["8B", "--gpus", "8", "--stages", "2"], "`--schedule 1f1b` runs 1 stage a rank"),
        (["8B", "--gpus", "8", "--schedule", "2f2b"], "`--schedule 2f2b`"),
        (["8B", "--requests", "5", "--weights", "int2"], "`--weights int2`"),
        (["405B", "--requests", "5"], "What would fit: int8 weights"),
        (["8B", "--requests", "5", "--per-token", "0.0001"], "promised are 1 s and 0.0001 s"),
    ],
)
def test_what_cannot_be_estimated_is_refused(llmos: Run, arguments: list[str], message: str) -> None:
    result = llmos("estimate", *arguments)
    assert result.code in (1, 2) and result.out == "" and message in result.err


def test_calibration_is_remembered_and_used(llmos: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, small in {"RUN_S": 0.01, "SUM_BYTES": 2**16, "STREAM_BYTES": {"cpu": 2**16}}.items():
        monkeypatch.setattr(calibrate, name, small)
    monkeypatch.setattr(calibrate, "_all_reduce", lambda device: 1e9)
    before = json.loads(llmos("estimate", "nano", "--gpu", "CPU", "--batch", "2", "-o", "json").out)
    result = llmos("estimate", "--calibrate")
    assert result.code == 0 and "all_reduce_bandwidth" in result.err
    measured = json.loads((tmp_path / ".llmos" / "calibration.json").read_text())["CPU"]
    assert measured["fp32_flops"] > 1e6 and measured["memory_bandwidth"] > 1e6
    after = json.loads(llmos("estimate", "nano", "--gpu", "CPU", "--batch", "2", "-o", "json").out)
    assert after["recommended"]["step_s"] != before["recommended"]["step_s"]


def test_dry_run_submits_nothing(llmos: Run, job_file: Path, api: FakeApi) -> None:
    result = llmos("train", "job.yaml", "--dry-run", "--set", "steps=7", "--set", "batch_size=8")
    assert result.code == 0 and [request.method for request in api.requests] == ["GET"]
    lines = dict(line.split(maxsplit=1) for line in result.out.splitlines())
    assert lines["tokens"] == f"{7 * 8 * 256:,} in 7 steps" and lines["mesh"].endswith("1 × CPU")
    found = json.loads(llmos("train", "job.yaml", "--dry-run", "-o", "json").out)
    assert found["steps"] == 100 and found["memory_bytes"]["weights"] == pytest.approx(4 * found["parameters"])
    assert found["train_s"] == pytest.approx(100 * found["step_s"])


def test_a_dry_run_takes_the_mesh_that_the_job_would_get(
    llmos: Run, job_file: Path, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little memory for a whole copy on a rank: two ranks of a node share it by tp, ranks of their own by fsdp."""
    tight = ("train", "job.yaml", "--dry-run", "--set", "batch_size=4", "--set", "workers={min: 4, max: 4}")
    tight = (*tight, "--set", "resources={memory: 80MiB}", "-o", "json")
    amount = {"gpus": 0, "memory_bytes": 2**30, "custom": {}}
    meshes = []
    for cpus in (2, 1):
        api.status = {**STATUS, "nodes": [{**NODE, "total": {**amount, "cpus": cpus}}]}
        meshes.append(json.loads(llmos(*tight).out)["mesh"])
    assert [(mesh["fsdp"], mesh["tp"]) for mesh in meshes] == [(2, 2), (4, 1)]
    named = llmos(*tight, "--set", "mesh={dp: 1, fsdp: 4}")
    assert named.code == 0 and len(api.requests) == 2  # a mesh that is named is nobody's choice
    monkeypatch.delenv("LLMOS_URL")
    alone = llmos(*tight)
    assert json.loads(alone.out)["mesh"] == meshes[0] and "no cluster was asked" in alone.err
