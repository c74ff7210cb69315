"""Copies of checkpoints on other storage: whole or not there, retried, and brought back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from llmos.errors import CheckpointError, UsageError
from llmos.parallel.world import World
from llmos.spec import CheckpointPolicy
from llmos.train import checkpoint, copies
from llmos.train.checkpoint import Checkpoint
from llmos.train.copies import Copies

POLICY = CheckpointPolicy(keep=2)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "PAUSES_S", (0.0, 0.0))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "jobs" / "coder" / "checkpoints"


def _save(directory: Path, step: int) -> None:
    checkpoint.save(directory, Checkpoint(step, {}, {"w": torch.full((4,), float(step))}, {}, {}), POLICY, World())


def _contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", ["file://{}", "{}", "local://{}"])  # the last one only fsspec knows
def test_what_is_kept_here_is_kept_there_and_comes_back(tmp_path: Path, directory: Path, form: str) -> None:
    there = Copies(form.format(tmp_path / "far"), directory)
    for step in (1, 2, 3):
        _save(directory, step)
        there.update()
    there.close()
    assert _contents(tmp_path / "far" / "coder") == _contents(directory)
    elsewhere = tmp_path / "new" / "coder" / "checkpoints"
    back = Copies(form.format(tmp_path / "far"), elsewhere)
    assert back.fetch() == elsewhere / "step-00000003"
    assert [path.name for path in elsewhere.iterdir()] == ["step-00000003"]
    assert checkpoint.find_latest(elsewhere, {}, World()) == elsewhere / "step-00000003"
    back.close()


def test_half_a_copy_is_none(tmp_path: Path, directory: Path) -> None:
    there = Copies(str(tmp_path / "far"), directory)
    assert there.fetch() is None
    _save(directory, 1)
    there.update()
    there.close()
    (tmp_path / "far" / "coder" / "step-00000001" / "manifest.json").unlink()
    again = Copies(str(tmp_path / "far"), directory)
    assert again.fetch() is None
    again.update()  # makes it whole
    again.close()
    assert _contents(tmp_path / "far" / "coder") == _contents(directory)


def test_a_storage_that_fails_is_tried_again_then_named(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    send, failures = Copies._send, [OSError("slow down"), OSError("slow down")]

    def unsteady(self: Copies, file: Path, target: str) -> None:
        if failures:
            raise failures.pop()
        send(self, file, target)

    monkeypatch.setattr(Copies, "_send", unsteady)
    _save(directory, 1)
    there = Copies(str(tmp_path / "far"), directory)
    with caplog.at_level(logging.WARNING, "llmos.train"):
        there.update()
        there.close()
    assert caplog.text.count("slow down; trying again") == 2
    assert _contents(tmp_path / "far" / "coder") == _contents(directory)
    _save(directory, 2)
    failures += [OSError("gone")] * 9
    again = Copies(str(tmp_path / "far"), directory)
    again.update()
    again.close()
    assert f"CHECKPOINT NOT COPIED to {tmp_path}/far, training goes on: gone" in caplog.text


def test_storage_that_does_not_answer_or_exist(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="`checkpoint.storage: nowhere://x`"):
        Copies("nowhere://x", directory)

    def fails(*_: Any) -> None:
        raise OSError("no route to host")

    there = Copies(str(tmp_path), directory)
    monkeypatch.setattr(there, "_list", fails)
    with pytest.raises(CheckpointError, match="cannot read the checkpoints at .*: no route to host"):
        there.fetch()
    there.close()
