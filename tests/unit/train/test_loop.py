"""The loop on one rank: what it writes, how it stops, resumes and refuses."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmos.errors import CheckpointError, ConflictError, TrainingError, UsageError
from llmos.models import weights
from llmos.parallel.pipeline import Direct
from llmos.parallel.world import World
from llmos.spec import digest, to_yaml
from llmos.train import __main__ as command_line
from llmos.train import checkpoint, shards
from llmos.train.data import Corpus
from llmos.train.export import export_checkpoint
from llmos.train.loop import train
from llmos.train.training import Training


def test_trains_measures_and_exports(trainer: Any) -> None:
    result = trainer.train(steps=40, validation={"every_steps": 20})
    rows = trainer.rows()
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert [row["step"] for row in rows if "bits_per_byte" in row] == [20, 40]
    assert rows[-1]["tokens"] == 40 * 4 * 32
    assert rows[0]["loss"] == pytest.approx(math.log(280), abs=0.3)  # knows nothing yet
    assert rows[-1]["loss"] < rows[0]["loss"] - 1.5
    assert result.phase == "succeeded" and result.step == 40
    assert result.metrics["bits_per_byte"] == rows[-1]["bits_per_byte"] < result.metrics["unigram_bits"]
    dirs = trainer.layout.job("tiny")
    assert json.loads(dirs.attempt(1).outcome.read_text()) == {
        "phase": "succeeded",
        "step": 40,
        "metrics": result.metrics,
    }
    lineage = json.loads((dirs.export / "lineage.json").read_text())
    assert lineage["spec_digest"] == digest(trainer.job(steps=40, validation={"every_steps": 20}))
    assert lineage["metrics"] == result.metrics
    assert (dirs.export / "tokenizer.json").exists()
    assert sorted(path.name for path in dirs.root.iterdir()) == ["attempts", "checkpoints", "export"]


def test_the_export_is_the_trained_model(trainer: Any) -> None:
    trainer.train()
    model = weights.load_model(trainer.layout.job("tiny").export, dtype=torch.float32, device="cpu")
    before = {name: torch.empty_like(parameter) for name, parameter in model.named_parameters()}
    checkpoint.load(trainer.layout.job("tiny").checkpoints / "step-00000012", before, World())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resume_is_exact(another: Callable[[str], Any], precision: str, optimizer: str) -> None:
    changes = {"precision": precision, "optimizer": {"name": optimizer, "warmup_steps": 3}}
    straight, halves = another("straight"), another("halves")
    straight.train(**changes)
    stop = halves.run().attempt.stop
    stop.parent.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "advance", _stopping_at(6, Training.advance))
        yielded = halves.train(**changes)
    assert (yielded.phase, yielded.step) == ("yielded", 6)
    result = halves.train(attempt=2, **changes)
    assert halves.losses(1) + halves.losses(2) == straight.losses()
    assert halves.rows(2)[-1]["validation_loss"] == straight.rows()[-1]["validation_loss"]
    assert halves.rows(2)[0]["grad_norm"] == straight.rows()[6]["grad_norm"]
    assert result.metrics["tokens"] == 12 * 4 * 32


def _stopping_at(step: int, advance: Any) -> Any:
    return lambda self, stop=False: advance(self, stop or self.step == step - 1)


def test_checkpoints_by_steps_by_time_and_the_best(trainer: Any) -> None:
    policy = {"every_steps": 5, "keep": 1, "keep_best": 1, "every": "1000h"}
    trainer.train(checkpoint=policy, validation={"every_steps": 1})
    rows = trainer.rows()
    assert [row["step"] for row in rows if "checkpoint_s" in row] == [5, 10, 12]
    assert all(0 < row["checkpoint_s"] < 5 for row in rows if "checkpoint_s" in row)
    best = min((row["validation_loss"], row["step"]) for row in rows if "checkpoint_s" in row)[1]
    assert {step for step, _ in checkpoint.saved(trainer.layout.job("tiny").checkpoints)} == {best, 12}


@pytest.mark.parametrize("asynchronous", [True, False])
def test_time_alone_makes_checkpoints(trainer: Any, asynchronous: bool) -> None:
    trainer.train(steps=4, checkpoint={"every_steps": 1000, "every": 1e-9, "keep": 9, "async": asynchronous})
    assert [step for step, _ in checkpoint.saved(trainer.layout.job("tiny").checkpoints)] == [4, 3, 2, 1]


def test_a_full_disk_is_survived_unless_it_is_the_end(
    trainer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = shards.write

    def full(path: Path, parts: Any) -> Any:
        if path.parent.name.startswith(".saving") and len(seen) < 2:
            seen.append(path)
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, parts)

    seen: list[Path] = []
    monkeypatch.setattr(shards, "write", full)
    assert trainer.train(checkpoint={"every_steps": 4}).step == 12
    assert caplog.text.count("CHECKPOINT NOT SAVED: cannot write checkpoint") == 2
    assert [step for step, _ in checkpoint.saved(trainer.layout.job("tiny").checkpoints)] == [12]
    trainer.layout.job("tiny").root.rename(trainer.layout.root / "before")
    seen.clear()
    with pytest.raises(CheckpointError, match="step-00000002: No space left on device") as caught:
        trainer.train(steps=2)
    assert "Make room" in caught.value.hint
    assert list(trainer.layout.job("tiny").checkpoints.iterdir()) == []


def test_a_job_goes_on_from_the_copy_when_its_own_are_gone(another: Callable[[str], Any], tmp_path: Path) -> None:
    policy = {"every_steps": 6, "storage": str(tmp_path / "far")}
    here, elsewhere = another("here"), another("elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "advance", _stopping_at(6, Training.advance))
        here.train(checkpoint=policy)
    elsewhere.train(checkpoint=policy)
    assert [row["step"] for row in elsewhere.rows()] == list(range(7, 13))


def test_any_checkpoint_can_be_exported(
    trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.train(checkpoint={"every_steps": 6, "keep": 2})
    spec, target = tmp_path / "job.yaml", tmp_path / "a"
    spec.write_text(to_yaml(trainer.job()))

    def command(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", ["train", str(spec), "--state-dir", str(trainer.layout.root), *more])
        return command_line.main()

    assert command("--export", str(target), "--step", "6") == 0
    assert capsys.readouterr().out.strip() == str(target)
    exported = weights.load_model(target)
    saved = {name: torch.empty_like(parameter) for name, parameter in exported.named_parameters()}
    path = trainer.layout.job("tiny").checkpoints / "step-00000006"
    found = checkpoint.load(path, saved, World())
    assert all(torch.equal(parameter, saved[name]) for name, parameter in exported.named_parameters())
    lineage = json.loads((target / "lineage.json").read_text())
    assert lineage["attempt"] == "step-00000006" and lineage["metrics"]["loss"] == found.state["loss"]
    assert command("--export", str(target)) == 1
    assert f"{target} exists: expected a new directory" in capsys.readouterr().err
    assert command("--export", str(tmp_path / "b"), "--step", "7") == 1
    assert "found steps 6, 12" in capsys.readouterr().err


def test_the_newest_checkpoint_is_the_model_of_the_export(trainer: Any, tmp_path: Path) -> None:
    trainer.train()
    dirs = trainer.layout.job("tiny")
    path = dirs.checkpoints / "step-00000012"
    corpus = Corpus.load(trainer.layout.data / checkpoint.verify(path)["recipe"]["data"])
    export_checkpoint(tmp_path / "b", path, corpus, torch.float32, {})
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == (dirs.export / "model.safetensors").read_bytes()
    assert weights.digest(tmp_path / "b") == weights.digest(dirs.export)
    shard = path / "model-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="does not verify"):
        export_checkpoint(tmp_path / "c", path, corpus, torch.float32, {})
    assert not (tmp_path / "c").exists()


def test_a_stop_file_ends_with_a_checkpoint(trainer: Any) -> None:
    run = trainer.run()
    run.attempt.root.mkdir(parents=True)
    run.attempt.stop.touch()
    result = trainer.train()
    assert (result.phase, result.step) == ("yielded", 1)
    assert json.loads(run.attempt.outcome.read_text())["phase"] == "yielded"
    assert not run.job_dirs.export.exists()
    assert trainer.train(attempt=2).phase == "succeeded"
    assert [row["step"] for row in trainer.rows(2)] == list(range(2, 13))


def test_a_stop_at_the_very_last_step_is_a_success(trainer: Any) -> None:
    run = trainer.run(steps=1)
    run.attempt.root.mkdir(parents=True)
    run.attempt.stop.touch()
    assert trainer.train(steps=1).phase == "succeeded"


def test_a_finished_job_returns_at_once(trainer: Any) -> None:
    first = trainer.train()
    assert trainer.train(attempt=2) == first
    assert not trainer.layout.job("tiny").attempt(2).metrics.exists()
    with pytest.raises(ConflictError, match="from another spec"):
        trainer.train(attempt=3, steps=13)
    (trainer.layout.job("tiny").export / "lineage.json").unlink()
    with pytest.raises(ConflictError, match="exists without"):
        trainer.train(attempt=4)


def test_killed_between_the_last_checkpoint_and_the_export(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("llmos.train.loop.export_model", _fails)
        with pytest.raises(OSError, match="no room"):
            trainer.train()
    result = trainer.train(attempt=2)
    assert (result.phase, result.step) == ("succeeded", 12)
    assert result.metrics["loss"] == trainer.losses(1)[-1]
    assert result.metrics["validation_loss"] == trainer.rows(1)[-1]["validation_loss"]


def _fails(*_: Any) -> None:
    raise OSError("no room")


def test_a_checkpoint_of_another_spec_is_refused(trainer: Any) -> None:
    trainer.train(steps=12)
    shutil.rmtree(trainer.layout.job("tiny").export)
    with pytest.raises(ConflictError, match="`optimizer.learning_rate` was 0.003, is now 0.5"):
        trainer.train(attempt=2, optimizer={"warmup_steps": 3, "learning_rate": 0.5})


def test_a_loss_that_is_no_number_ends_the_job(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Direct, "accumulate", lambda *_: torch.tensor(torch.nan))
    with pytest.raises(TrainingError, match="step 1: the loss is nan"):
        trainer.train()
    assert not trainer.layout.job("tiny").export.exists()


def test_a_rate_that_explodes_ends_the_job(trainer: Any) -> None:
    with pytest.raises(TrainingError, match="expected finite numbers"):
        trainer.train(steps=60, optimizer={"learning_rate": 1e18, "warmup_steps": 0})


def test_micro_batches_make_the_same_gradients(another: Callable[[str], Any]) -> None:
    whole, parts = another("whole"), another("parts")
    whole.train(micro_batch_size=4)
    parts.train(micro_batch_size=1)
    assert parts.losses() == pytest.approx(whole.losses(), abs=2e-5)


def test_a_sequence_the_model_cannot_hold(trainer: Any, tmp_path: Path) -> None:
    trainer.train(steps=1)
    config = trainer.layout.job("tiny").export.rename(tmp_path / "config")
    with pytest.raises(UsageError, match="too long: the model is made for at most 1024"):
        trainer.train(attempt=2, model={"config": str(config)}, sequence_length=2048)


def test_a_registered_model_goes_on_with_its_weights_and_tokenizer(trainer: Any, tmp_path: Path) -> None:
    trainer.train(steps=40)
    base = trainer.layout.job("tiny").export.rename(tmp_path / "base")
    last = trainer.losses()[-1]
    trainer.layout.job("tiny").root.rename(tmp_path / "first")
    run = dataclasses.replace(trainer.run(model={"ref": "tiny@1"}), base_model=base)
    run.attempt.root.mkdir(parents=True)
    train(run, World())
    assert trainer.losses()[0] == pytest.approx(last, abs=0.4)
    assert (run.job_dirs.export / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    lineage = json.loads((run.job_dirs.export / "lineage.json").read_text())
    assert lineage["base_model"] == "tiny@1"
