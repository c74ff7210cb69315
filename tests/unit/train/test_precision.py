"""Types, and the loss scale of fp16."""

from __future__ import annotations

from typing import Any

import pytest

from llmos.errors import TrainingError
from llmos.train.precision import LossScale


def test_the_scale_halves_when_gradients_overflow_and_doubles_after_a_while() -> None:
    scale = LossScale(used=True, patience=3)
    scale.update(False)
    assert scale.value == 2.0**15
    for _ in range(3):
        scale.update(True)
    assert scale.value == 2.0**16
    scale.value = 1.0
    with pytest.raises(TrainingError, match="overflow at any loss scale"):
        scale.update(False)
    off = LossScale(used=False)
    off.update(False)
    assert off.value == 1.0


def test_fp16_skips_steps_that_overflow_and_trains_on(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmos.train.precision._FIRST_SCALE", 2.0**28)
    trainer.train(precision="fp16")
    rows = trainer.rows()
    skipped = [row["step"] for row in rows if "skipped" in row]
    assert 0 < len(skipped) < 12 and skipped == list(range(1, len(skipped) + 1))
    assert rows[-1]["loss"] < rows[len(skipped)]["loss"]


@pytest.mark.parametrize("precision", ["fp16", "bf16_weights"])
def test_losses_stay_close_to_those_of_fp32(another: Any, precision: str) -> None:
    exact, rounded = another("exact"), another("rounded")
    exact.train()
    rounded.train(precision=precision)
    assert rounded.losses() == pytest.approx(exact.losses(), rel=5e-3)
