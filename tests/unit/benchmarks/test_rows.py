"""The runner of the benchmarks: every row is reported, whatever becomes of it."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

from benchmarks import bubble_rows, mfu_row, rows, train
from benchmarks.rows import Measured, Options, Row, Target, Unmeasured
from llmos.models import ModelConfig
from llmos.parallel.world import World

NAMES = [
    "tokens_10m",
    "tokens_135m",
    "scale_dp",
    "scale_tp",
    "scale_pp",
    "orchestration_pct",
    "telemetry_pct",
    "submit_to_step_s",
    "bubble_1f1b",
    "bubble_interleaved",
    "bubble_zero",
    "ckpt_stall_pct",
    "ckpt_reshard",
    "kill_to_step",
    "resize_to_step",
    "node_loss_to_step",
    "memory_fsdp4",
    "memory_predicted",
    "step_predicted",
    "shakespeare",
    "mfu_1p3b",
]
FIELDS = ["name", "value", "unit", "peer", "peer_value", "ratio", "target", "met", "why"]


def good(options: Options) -> Measured:
    return Measured(3.0, 2.0, 1.5, "quick" if options.quick else "whole", peer="the faster of two")


def bad(options: Options) -> Measured:
    raise ZeroDivisionError("by what")


def skipped(options: Options) -> Measured:
    return Measured(len(options.file("text.txt").read_text()))


def _row(name: str, *targets: Target) -> Row:
    return Row(name, f"{__name__}:{name}", "s", "a peer", targets or (Target("value", most=5),))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMOS_DATA", raising=False)
    monkeypatch.setattr(rows, "machine", lambda: {"cpu": "of the test"})


def _run(capsys: pytest.CaptureFixture[str], *argv: str, of: tuple[Row, ...]) -> tuple[int, dict, str]:
    code = rows.main("test", of, argv)
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def test_every_row_of_training_is_there_and_has_a_function() -> None:
    assert [row.name for row in train.ROWS] == NAMES
    for row in train.ROWS:
        module, function = row.run.split(":")
        assert callable(getattr(import_module(module), function)), row.run


def test_the_report_is_one_object_with_machine_commit_and_rows(here: None, capsys: pytest.CaptureFixture[str]) -> None:
    code, report, err = _run(capsys, "--quick", of=(_row("good"),))
    assert code == 0
    assert list(report) == ["machine", "commit", "rows"]
    (row,) = report["rows"]
    assert list(row)[: len(FIELDS)] == FIELDS
    assert (row["value"], row["peer_value"], row["ratio"], row["met"]) == (3.0, 2.0, 1.5, True)
    assert row["peer"] == "the faster of two" and row["why"] == "quick" and row["target"] == "value <= 5"
    assert "1 of 1 met" in err


def test_a_row_that_fails_is_reported_with_the_others(here: None, capsys: pytest.CaptureFixture[str]) -> None:
    code, report, err = _run(capsys, "--json", of=(_row("bad"), _row("good")))
    assert code == 1
    failed, fine = report["rows"]
    assert failed["met"] is False and failed["value"] is None and failed["peer"] == "a peer"
    assert failed["why"] == "failed: ZeroDivisionError: by what"
    assert fine["met"] is True
    assert "rows that read traces or texts will say that they were skipped" in err and "met\n1 of" not in err


def test_a_row_whose_data_is_missing_says_so(
    here: None, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, report, _ = _run(capsys, of=(_row("skipped"),))
    assert report["rows"][0]["why"].startswith("skipped: needs text.txt; give --data DIR or set LLMOS_DATA")
    _, report, _ = _run(capsys, "--data", str(tmp_path), of=(_row("skipped"),))
    assert report["rows"][0]["why"] == "skipped: the data directory has no text.txt"
    (tmp_path / "text.txt").write_text("four")
    monkeypatch.setenv("LLMOS_DATA", str(tmp_path))
    _, report, _ = _run(capsys, of=(_row("skipped"),))
    assert report["rows"][0]["value"] == 4


def test_all_targets_must_be_met_and_no_ratio_meets_none() -> None:
    fast, good_enough = Target("ratio", least=0.98, note="1.00, tolerance 0.02"), Target("value", most=1.88)
    assert str(fast) == "ratio >= 0.98 (1.00, tolerance 0.02)"
    assert str(Target("ratio", 0.85, 1.15)) == "ratio >= 0.85 and <= 1.15"
    row = _row("good", Target("ratio", least=1), Target("value", most=2))
    assert row.measure(Options())["met"] is False
    assert fast.met(Measured(1.0, ratio=0.98)) and not fast.met(Measured(1.0, ratio=0.97))
    assert not fast.met(Measured(1.0)) and good_enough.met(Measured(1.8))


def test_chunks_of_rows_are_merged_into_one_report(
    here: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    both, file = (_row("bad"), _row("good")), tmp_path / "report.json"
    _run(capsys, "--only", "good", "--merge", str(file), of=both)
    _, report, _ = _run(capsys, "--only", "bad", "--merge", str(file), of=both)
    assert [row["name"] for row in report["rows"]] == ["bad", "good"]
    assert json.loads(file.read_text()) == report


def test_an_unknown_row_is_refused(here: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        rows.main("test", (_row("good"),), ["--only", "goood"])
    assert stopped.value.code == 2 and "choose from" in capsys.readouterr().err


def test_without_a_gpu_the_row_of_gpus_says_what_it_would_take() -> None:
    with pytest.raises(Unmeasured, match="DEVICE=cuda on a machine that has one"):
        mfu_row.mfu_1p3b(Options())


def test_the_loop_that_mfu_is_measured_with_trains() -> None:
    config = ModelConfig(64, 16, 32, 2, 2, 2, 8, 16, tie_embeddings=False)
    run = mfu_row.Run(config, rows=1, accumulate=2, length=16, steps=2, compiled=False)
    assert mfu_row.training_speed(run, World()) > 0
    assert 1.2e9 < mfu_row.LLAMA_1P3B.config.num_parameters < 1.4e9


def test_a_slowed_layer_computes_what_the_layer_does() -> None:
    inner = torch.nn.Linear(4, 4)
    x = torch.randn(2, 4, requires_grad=True)
    slow = bubble_rows.SlowLayer(inner)
    assert torch.equal(slow(x), inner(x))
    (expected,) = torch.autograd.grad(inner(x).sum(), x)
    (found,) = torch.autograd.grad(slow(x).sum(), x)
    assert torch.equal(found, expected)
