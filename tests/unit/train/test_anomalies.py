"""A step that went wrong is judged the same everywhere, and training stops, skips it, or returns to before it."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from llmos.errors import DivergenceError
from llmos.parallel.world import World
from llmos.spec import Anomalies
from llmos.train import checkpoint
from llmos.train.anomalies import Past, highest, judge
from llmos.train.loop import train
from llmos.train.run import Run
from llmos.train.training import Training

CALM = (2.0, 2.1, 1.9, 2.0)


@pytest.mark.parametrize(
    ("policy", "past", "loss", "norm", "verdict", "why"),
    [
        ({}, Past(CALM), 2.1, 1.0, "go_on", ""),
        ({}, Past(CALM), 99.0, 1.0, "go_on", ""),  # spikes are ignored unless the job says otherwise
        ({}, Past(), math.nan, 1.0, "stop", "the loss is nan, the gradient's norm 1.0"),
        ({}, Past(), 2.0, math.inf, "stop", "the gradient's norm inf"),
        ({"nan": "skip"}, Past(skips=2), math.nan, 1.0, "skip", "expected finite"),
        ({"nan": "skip"}, Past(skips=3), math.nan, 1.0, "stop", "`anomalies.limit: 3` is reached (skip)"),
        ({"nan": "roll_back"}, Past(skips=9), math.nan, 1.0, "roll_back", "expected finite"),
        ({"nan": "roll_back", "limit": 1}, Past(roll_backs=1), math.nan, 1.0, "stop", "reached (roll_back)"),
        ({"spike": "roll_back"}, Past(CALM), 3.0, 1.0, "roll_back", "the loss is 3.0000: expected at most 2.4448"),
        ({"spike": "skip"}, Past(CALM), 2.4, 1.0, "go_on", ""),
        ({"spike": "skip"}, Past(CALM[:3]), 99.0, 1.0, "go_on", ""),  # too few to tell
        ({"spike": "stop"}, Past((2.0,) * 4), 2.3, 1.0, "stop", "expected at most 2.1200"),  # none has differed yet
    ],
)
def test_verdicts(policy: Any, past: Past, loss: float, norm: float, verdict: str, why: str) -> None:
    found = judge(Anomalies(window=8, **policy), past, loss, norm)
    assert found[0] == verdict and why in found[1] and bool(found[1]) == bool(why)


def test_the_past_forgets_what_is_older_than_its_window() -> None:
    past = Past()
    for loss in (5.0, *CALM):
        past = past.after("go_on", loss, window=4)
    assert past == Past(CALM) == Past.of(json.loads(json.dumps(past.to_json())))
    assert past.after("skip", 9.0, 4).after("skip", 9.0, 4) == Past(CALM, skips=2)
    assert past.after("skip", 9.0, 4).after("go_on", 2.0, 4).skips == 0
    assert highest((), Anomalies(spike="stop")) == math.inf


POISONED = 7
"""The batch (from 0) that goes wrong."""


def _poison(patch: pytest.MonkeyPatch, batches: Sequence[int], value: float) -> None:
    """On the ranks that know its loss, and before ranks sum it, the loss of ``batches`` becomes ``value`` a token."""
    differentiate = Training._differentiate

    def poisoned(self: Training, batch: Any, stop: bool) -> Any:
        passes = self._model.passes
        if self.step + self._incidents.skipped not in batches:
            return differentiate(self, batch, stop)
        with pytest.MonkeyPatch.context() as inner:
            scale = value * batch.counted / self._step_tokens
            honest = passes.accumulate
            inner.setattr(passes, "accumulate", lambda *rows: honest(*rows) * 0 + scale, raising=False)
            return differentiate(self, batch, stop)

    patch.setattr(Training, "_differentiate", poisoned)


def _events(trainer: Any, attempt: int = 1) -> list[dict[str, Any]]:
    lines = trainer.layout.job("tiny").attempt(attempt).events.read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_stopping_names_the_samples_and_is_final(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(monkeypatch, [POISONED], math.nan)
    with pytest.raises(DivergenceError) as caught:
        trainer.train(data=trainer.data | {"log_samples": True})
    read = ", ".join(trainer.samples(1, 0)[POISONED])
    assert "step 8: the loss is nan" in caught.value.message
    assert f"it read samples 28 to 31 of the job (source/epoch/row: {read})" in caught.value.message
    assert 400 <= caught.value.http_status < 500  # it would fail the same way: no other attempt
    assert [step for step, _ in checkpoint.saved(trainer.layout.job("tiny").checkpoints)] == [6]


def test_skipping_leaves_the_weights_and_a_trace(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(monkeypatch, [POISONED], 50.0)
    trainer.train(anomalies={"spike": "skip", "window": 8})
    assert [row["step"] for row in trainer.rows() if "skipped" in row] == [8]
    assert trainer.rows()[POISONED]["loss"] == pytest.approx(50)
    (event,) = _events(trainer)
    assert event["what"] == "skip" and "step 8: the loss is 50.0000: expected at most" in event["why"]


def test_under_loss_scaling_it_is_no_anomaly(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(monkeypatch, [POISONED], math.inf)
    trainer.train(precision="fp16")  # `nan: stop`, but the scale is to blame, and is lowered
    assert [row["step"] for row in trainer.rows() if "skipped" in row] == [8]
    assert not trainer.layout.job("tiny").attempt(1).events.exists()


def test_rolling_back_goes_on_behind_the_batch_and_so_does_a_resume(
    another: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 8 fails: back to the checkpoint of step 6, whose next batch is number 8 (from 0)."""
    changes = {"anomalies": {"nan": "roll_back"}, "checkpoint": {"every_steps": 3}}
    straight, halves = another("straight"), another("halves")
    _poison(monkeypatch, [POISONED], math.nan)
    log = {"data": straight.data | {"log_samples": True}}
    straight.train(**changes, **log)
    rows = straight.rows()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, *range(7, 13)]
    assert [row.get("skipped_batches") for row in rows] == [None] * 7 + [2] * 6
    assert "to step 6; training goes on behind batches 7 to 8 (roll-back 1 of at most 3)" in _events(straight)[1]["why"]
    read = straight.samples(1, 0)
    assert len({sample for ids in read for sample in ids}) == sum(map(len, read))  # none is seen twice
    saved = dict(checkpoint.saved(straight.layout.job("tiny").checkpoints))
    assert checkpoint.state(saved[12])["skipped_batches"] == [[6, 7]]
    assert checkpoint.state(saved[12])["samples"] == 14 * 4
    stops = [9]
    advance = Training.advance
    monkeypatch.setattr(Training, "advance", lambda self, stop=False: advance(self, stop or self.step + 1 in stops))
    assert halves.train(**changes).phase == "yielded"
    stops.clear()
    assert halves.train(attempt=2, **changes, **log).phase == "succeeded"
    assert halves.losses(2) == straight.losses()[-3:]
    assert halves.samples(2, 0) == read[-3:]


def test_roll_backs_go_further_back_and_end(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From batch 7 on nothing works, nor behind step 6's checkpoint: then step 3's is taken; that is enough."""
    _poison(monkeypatch, range(POISONED, 99), math.nan)
    with pytest.raises(DivergenceError, match=r"`anomalies.limit: 2` is reached \(roll_back\)"):
        trainer.train(anomalies={"nan": "roll_back", "limit": 2}, checkpoint={"every_steps": 3})
    assert [event["why"].partition(";")[0] for event in _events(trainer) if event["what"] == "rolled_back"] == [
        "to step 6",
        "to step 3",
    ]


def test_the_beginning_can_be_rolled_back_to(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(monkeypatch, [1], math.nan)
    trainer.train(steps=4, anomalies={"nan": "roll_back"})
    assert [row["step"] for row in trainer.rows()] == [1, 1, 2, 3, 4]


MESHES = [{"dp": 2}, {"fsdp": 2}, {"tp": 2}, {"pp": 2}]


def _child(rank: int, directory: str, runs: Sequence[Run]) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    _poison(pytest.MonkeyPatch(), [POISONED], math.nan)
    store = dist.FileStore(f"{directory}/store", 2)
    timeout = timedelta(minutes=2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timeout)
    for run in runs:
        train(run, World.current())
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_all_ranks_of_any_mesh_roll_back_together(
    another: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"anomalies": {"nan": "roll_back"}, "checkpoint": {"every_steps": 3}, "steps": 10}
    _poison(monkeypatch, [POISONED], math.nan)
    one = another("one")
    one.train(**changes)
    trainers = {str(mesh): another(next(iter(mesh))) for mesh in MESHES}
    runs = [
        trainer.run(mesh=mesh, micro_batch_size=2, **changes)
        for mesh, trainer in zip(MESHES, trainers.values(), strict=True)
    ]
    for run in runs:
        run.attempt.root.mkdir(parents=True)
    torch.multiprocessing.spawn(_child, (str(tmp_path), runs), nprocs=2)
    for name, trainer in trainers.items():
        assert [row["step"] for row in trainer.rows()] == [row["step"] for row in one.rows()], name
        assert trainer.losses() == pytest.approx(one.losses(), rel=1e-4), name
    assert not multiprocessing.active_children()
