"""A user's own loop on ranks of this machine: metrics, checkpoints, its end, and what it is told when it errs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llmos import functions, local
from llmos.errors import CheckpointError, DataError, UsageError
from llmos.layout import Layout
from llmos.parallel.world import World
from llmos.sources import specs
from llmos.spec import TrainFunction, parse
from llmos.train import own_loop
from llmos.train.context import Context
from llmos.train.run import FunctionRun, Result

STEPS = 8
EXAMPLE = Path(__file__).parents[3] / "examples" / "own_loop"


def regression(context: Context, stop_after: int = STEPS) -> nn.Module:
    """A line fitted to noise from torch's generator, with momentum: everything that a checkpoint must hold."""
    torch.manual_seed(7)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    saved = context.latest()
    if saved:
        saved.load(model, optimizer)
    for step in range(saved.step + 1 if saved else 1, context.steps + 1):
        x = torch.randn(16, 3)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == stop_after:
            context._run.attempt.stop.touch()
        context.report(step, loss=loss, seen=16 * step)
        if context.should_save():
            context.save(step, model, optimizer, seen=16 * step)
        if context.should_stop():
            break
    return model


def job(**changes: Any) -> TrainFunction:
    fields = {"kind": "TrainFunction", "name": "mine", "function": {"call": "loop:main"}, "steps": STEPS}
    found = parse(fields | {"checkpoint": {"every_steps": 5}} | changes)
    assert isinstance(found, TrainFunction)
    return found


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Calls a function as attempt ``number`` of the same job."""

    def run(function: own_loop.Loop, number: int = 1, **changes: Any) -> Result:
        dirs = Layout(tmp_path).job("mine")
        dirs.attempt(number).root.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(own_loop, "load", lambda run: function)
        return own_loop.call(FunctionRun(job(**changes), dirs, dirs.attempt(number)), World())

    return run


def rows(root: Path, number: int = 1) -> list[dict[str, float]]:
    lines = Layout(root).job("mine").attempt(number).metrics.read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "time_s"} for line in lines]


def test_stopped_and_resumed_it_does_what_it_does_unbroken(
    attempt: Callable[..., Result], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    straight = attempt(regression, number=9, name="other", checkpoint={"every_steps": 100, "keep": 1})
    unbroken = rows(tmp_path, 9)
    assert (straight.phase, straight.step) == ("succeeded", STEPS) and straight.metrics["seen"] == 16 * STEPS
    checkpoints = Layout(tmp_path).job("mine").checkpoints
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000008"]  # the last one is due by itself
    checkpoints.rename(tmp_path / "unbroken")

    yielded = attempt(lambda context: regression(context, stop_after=3), number=1)
    assert (yielded.phase, yielded.step) == ("yielded", 3)
    outcome = json.loads(Layout(tmp_path).job("mine").attempt(1).outcome.read_text())
    assert outcome == {"phase": "yielded", "step": 3, "metrics": yielded.metrics}
    resumed = attempt(regression, number=2)
    assert resumed.metrics == straight.metrics
    assert rows(tmp_path, 1) + rows(tmp_path, 2) == unbroken
    for name in ("model-00000.safetensors", "optimizer-00000.safetensors"):
        assert (checkpoints / "step-00000008" / name).read_bytes() == (
            tmp_path / "unbroken" / "step-00000008" / name
        ).read_bytes()
    assert json.loads((checkpoints / "step-00000008" / "state.json").read_text())["numbers"] == {"seen": 16 * STEPS}


def test_what_the_policy_does_not_keep_goes(attempt: Callable[..., Result], tmp_path: Path) -> None:
    attempt(regression, checkpoint={"every_steps": 2, "keep": 2})
    found = sorted(path.name for path in Layout(tmp_path).job("mine").checkpoints.iterdir())
    assert found == ["step-00000006", "step-00000008"]


def test_what_a_lost_worker_makes_it_do_again_is_written_once(attempt: Callable[..., Result], tmp_path: Path) -> None:
    class Lost(Exception):
        pass

    def until(context: Context) -> None:
        model = regression(context, stop_after=STEPS + 1) if context.latest() else nn.Linear(3, 1)
        if context.latest() is None or context.latest().step < STEPS:  # type: ignore[union-attr]
            context.report(1, loss=1.0)
            context.save(1, model)
            context.report(2, loss=2.0)
            raise Lost

    with pytest.raises(Lost):
        attempt(until)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    attempt(lambda context: context.report(2, loss=3.0))
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(1, 1.0), (2, 3.0)]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            lambda context: (context.report(2), context.report(2)),
            "after step 2: expected steps to go up",
        ),
        (lambda context: context.report(1, loss="low"), "report(loss=…) is of type str: expected a number"),
        (lambda context: context.report(1, loss=torch.zeros(2)), "expected a number, or a tensor of one"),
        (lambda context: context.save(1, {"w": 1.0}), "`w` of the model is of type float: expected a tensor"),
        (lambda context: context.save(1, {"w": torch.ones(1)}, rate={1}), "save() takes numbers and texts"),
        (
            lambda context: context.save(1, {"w": torch.ones(1)}, torch.optim.SGD([nn.Parameter(torch.ones(1))])),
            "with an optimizer, expected a torch.nn.Module",
        ),
    ],
)
def test_says_what_is_wrong(attempt: Callable[..., Result], function: own_loop.Loop, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        attempt(function)
    assert said in caught.value.message


def test_a_function_that_is_not_there_or_not_whole_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty_module_of_this_test.py").write_text("main = 3\n")

    def load(code: Path | None = None, **function: str) -> None:
        dirs = Layout(tmp_path).job("mine")
        own_loop.load(FunctionRun(job(function=function), dirs, dirs.attempt(1), code))

    with pytest.raises(UsageError, match="cannot import `no_such_module:main`"):
        load(call="no_such_module:main", path=str(tmp_path))
    (tmp_path / "whole_module_of_this_test.py").write_text("def main(context):\n    return 3\n")
    load(call="whole_module_of_this_test:main", path=str(tmp_path))
    with pytest.raises(UsageError, match="has no attribute 'loop'"):
        load(call="empty_module_of_this_test:loop", path=str(tmp_path))
    with pytest.raises(UsageError, match="is of type int: expected a function"):
        load(call="empty_module_of_this_test:main", path=str(tmp_path))
    packed = functions.pack(regression)
    (tmp_path / "code").write_bytes(packed.content[:-1] + b"!")
    with pytest.raises(DataError, match="has SHA-256"):
        load(tmp_path / "code", sha256=packed.sha256, python="3.12")
    unknown = b"cno_such_module\nmain\n."
    (tmp_path / "code").write_bytes(unknown)
    with pytest.raises(UsageError, match="cannot be loaded here: ModuleNotFoundError"):
        load(tmp_path / "code", sha256=functions.Packed(unknown).sha256, python="3.12")


def test_a_checkpoint_without_an_optimizer_says_so(attempt: Callable[..., Result]) -> None:
    def loop(context: Context) -> None:
        model = nn.Linear(3, 1)
        context.save(1, model)
        saved = context.latest()
        assert saved is not None
        saved.load(model)
        saved.load(model, torch.optim.SGD(model.parameters()))

    with pytest.raises(CheckpointError, match="was saved without an optimizer"):
        attempt(loop)


SHARDED = """
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard


def main(context):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    if context.size > 1:
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    saved = context.latest()
    if saved:
        saved.load(model, optimizer)
    for step in range(saved.step + 1 if saved else 1, context.steps + 1):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x[:, :2]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        context.report(step, loss=loss)
        if context.should_save():
            context.save(step, model, optimizer)
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_what_sharded_ranks_save_one_alone_goes_on_from(tmp_path: Path) -> None:
    (tmp_path / "sharded_loop.py").write_text(SHARDED)
    spec = job(function={"call": "sharded_loop:main", "path": str(tmp_path)}, workers={"min": 1, "max": 2})

    def losses(state: str, *turns: tuple[int, int]) -> list[float]:
        seen: list[float] = []
        for ranks, steps in turns:
            turn = spec.on(ranks).model_copy(update={"steps": steps})
            view = local.train(turn, Layout(tmp_path / state), lambda _, rows: seen.extend(r.loss for r in rows), print)
            assert view.succeeded, view
        return seen

    assert losses("both", (2, 4), (1, 8)) == pytest.approx(losses("alone", (1, 8)), rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_example_on_two_ranks_without_a_cluster(tmp_path: Path) -> None:
    (spec,) = specs(EXAMPLE / "job.yaml")
    assert isinstance(spec, TrainFunction) and spec.function.path == str(EXAMPLE)
    seen: list[float] = []
    layout = Layout(tmp_path / "state")
    report = seen.append
    view = local.train(spec.on(2), layout, lambda view, rows: seen.extend(row.loss for row in rows), report)
    assert (view.phase, view.step, view.model) == ("succeeded", 200, None), view
    assert len(seen) == 200 and seen[-1] < seen[0] / 100
    assert [path.name for path in sorted(layout.job("own-loop").checkpoints.iterdir())] == [
        "step-00000150",
        "step-00000200",
    ]
    alone = local.train(spec.on(1), Layout(tmp_path / "alone"), lambda view, rows: None, report)
    assert alone.metrics["loss"] == pytest.approx(seen[-1], rel=1e-3)  # what it learns does not depend on the ranks
