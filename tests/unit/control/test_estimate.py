"""``llmos.estimate`` and ``POST /api/v1/estimate``: what they answer, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import llmos
from llmos.control.estimate import parse_mesh, parse_tokens
from llmos.core.capacity import Mesh
from llmos.errors import NotFoundError, UsageError
from llmos.layout import Layout
from tests.unit.control.world import SHAPE, World, write_model


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMOS_STATE_DIR", str(tmp_path / "own"))
    return tmp_path / "own"


def test_an_estimate_needs_no_cluster_and_is_json() -> None:
    found = llmos.estimate("70b", gpus=64, tokens="1T", price=2)
    assert found.recommended == found.feasible[0] and found.recommended["machines"] == 8
    assert found.recommended["price"] == pytest.approx(2 * found.recommended["accelerator_hours"])
    assert json.loads(json.dumps(found)) == found


def test_tokens_and_a_deadline_may_be_numbers() -> None:
    said = llmos.estimate("8B", tokens="300B", deadline="10d")
    assert llmos.estimate("8B", tokens=300e9, deadline=864000.0) == said
    assert said.recommended["days"] <= 10


def test_what_is_not_met_is_a_warning() -> None:
    found = llmos.estimate("8B", gpus=8, tokens="1T", deadline="1d", sequence=2**18, batch=16)
    assert [warning.split()[0] for warning in found.warnings] == ["--sequence", "8"]


def test_serving_has_its_load_and_machines() -> None:
    found = llmos.estimate("70B", requests=40.0, first_token=0.5)
    assert found.load["first_token_s"] == 0.5 and found.recommended == found.ways[0]
    assert found.recommended["machines"] == -(-found.recommended["accelerators"] // 8)


def test_what_was_measured_counts(state: Path) -> None:
    before = llmos.estimate("nano", gpu="CPU", batch=2).recommended["step_s"]
    state.mkdir()
    Layout(state).calibration.write_text(json.dumps({"CPU": {"fp32_flops": 1e12, "bf16_flops": 1e12}}))
    assert llmos.estimate("nano", gpu="CPU", batch=2).recommended["step_s"] < before
    assert llmos.estimate("nano", gpu="H100", batch=2) == llmos.estimate("nano", batch=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpuz": 3}, "`gpuz` is no option: expected some of gpus, gpu"),
        ({"gpu": 3}, "`gpu: 3`"),
        ({"gpus": "many"}, "`gpus: many`"),
        ({"gpus": 0}, "`--gpus 0`: expected more than 0 and at most 100,000"),
        ({"gpus": 10**6}, "`--gpus 1000000`"),
        ({"micro_batch": -1}, "`--micro-batch -1`"),
        ({"requests": float("nan")}, "`--requests nan`"),
        ({"price": -1.0}, "`--price -1.0`"),
        ({"tokens": "-3B"}, "`--tokens -3B`"),
        ({"deadline": "soon"}, "`--deadline soon`"),
        ({"mesh": "tp=3"}, "tp 3 does not divide the 32 heads"),
    ],
)
def test_what_cannot_be_asked_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        llmos.estimate("8B", **options)


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(UsageError) as refused:
        llmos.estimate("8B", microbatch=3)
    assert refused.value.hint == "did you mean `micro_batch`?"


@pytest.mark.parametrize("text", ["fsdp=8,tp=4", "fsdp 8 × tp 4", "tp=4, fsdp=8", "fsdp8 tp4", " fsdp = 8,tp = 4 "])
def test_a_mesh_may_be_written_as_tables_show_it(text: str) -> None:
    assert parse_mesh(text) == Mesh(fsdp=8, tp=4)


@pytest.mark.parametrize("text", ["8", "fsdp", "fsdp=-8", "ep=2", "fsdp=8 tp", "fsdp=1e3", "fsdp=0"])
def test_what_is_no_mesh_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected sizes of dp, fsdp, tp, pp and cp"):
        parse_mesh(text)


@pytest.mark.parametrize(("text", "tokens"), [("15T", 15e12), ("1.5B", 1.5e9), ("2e9", 2e9), (3e9, 3e9), ("7k", 7e3)])
def test_tokens_have_units(text: str | float, tokens: float) -> None:
    assert parse_tokens(text) == tokens


def test_control_estimates_registered_models_and_no_files(world: World, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", world.tokenizer)
    ref = world.control.import_model("coder", str(model))["ref"]
    found = world.control.estimate(ref, {"gpu": "CPU", "batch": 2})
    assert found["parameters"] == SHAPE.num_parameters
    assert world.control.estimate("8B", {"gpus": 8})["recommended"]["ranks"] == 8
    with pytest.raises((NotFoundError, UsageError)):
        world.control.estimate(str(model), {})
