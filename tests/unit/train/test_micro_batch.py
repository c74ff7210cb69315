"""``micro_batch_size: auto``: the largest part that fits is found, and the step stays the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from llmos.control.capacity import placed
from llmos.errors import SpecError, TrainingError
from llmos.parallel.mesh import RankMesh
from llmos.parallel.world import World
from llmos.spec import load, to_yaml
from llmos.train import micro_batch
from llmos.train.micro_batch import largest_that_fits, settled
from llmos.train.start import shape


@pytest.mark.parametrize(("share", "limit", "expected"), [(24, 24, 24), (24, 7, 6), (7, 6, 1), (6, 1, 1)])
def test_the_largest_divisor_that_fits(share: int, limit: int, expected: int) -> None:
    assert largest_that_fits(share, lambda rows: rows <= limit, World()) == expected


def test_not_even_one() -> None:
    with pytest.raises(TrainingError, match="not even a micro-batch of one sequence fits"):
        largest_that_fits(4, lambda rows: False, World())


def test_it_is_tried_with_what_training_will_hold(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU of which three sequences of eight need more than there is: the device is said to be one here."""
    spread, tried = micro_batch.spread, []

    def limited(*args: Any) -> Any:
        model = spread(*args)
        accumulate = model.passes.accumulate

        def within(tokens_BT: Any, targets_BT: Any) -> Any:
            tried.append(len(tokens_BT))
            if len(tokens_BT) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return accumulate(tokens_BT, targets_BT)

        model.passes.accumulate = within
        return model

    monkeypatch.setattr(micro_batch, "spread", limited)
    job = trainer.job(batch_size=8, micro_batch_size="auto")
    mesh = RankMesh(World())
    assert settled(job, shape(job), mesh) is job  # CPUs go by what the capacity model says
    trial = micro_batch._Trial(job, shape(job), torch.device("cpu"))
    assert largest_that_fits(8, trial, World()) == 2 and tried == [8, 4, 2]


def test_the_same_losses_as_with_any_other_micro_batch(another: Callable[[str], Any]) -> None:
    chosen = placed(another("auto").job(batch_size="auto", resources={"memory": "14MiB"}, steps=4))
    assert chosen.micro_batch and 1 < chosen.micro_batch < chosen.batch_size == 32
    changes = {"batch_size": 32, "steps": 4}
    automatic, explicit = another("auto"), another("explicit")
    automatic.train(micro_batch_size=chosen.micro_batch, **changes)
    explicit.train(micro_batch_size=1, **changes)
    assert automatic.losses() == pytest.approx(explicit.losses(), rel=1e-5)


def test_how_a_spec_says_it(trainer: Any) -> None:
    job = trainer.job(micro_batch_size="auto")
    assert load(to_yaml(job)) == [job] and job.micro_batch is None
    assert trainer.job(batch_size="auto", micro_batch_size=4).micro_batch == 4
    with pytest.raises(SpecError, match="`micro_batch_size`: expected a whole number, found the text 'most'"):
        trainer.job(micro_batch_size="most")
    with pytest.raises(SpecError, match="`batch_size`: expected a whole number, found the text 'most'"):
        trainer.job(batch_size="most")
