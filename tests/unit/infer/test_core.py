"""The core over pages without a model: who gets which tokens, who is over, and what that frees."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from llmos.errors import ContextLengthError, DeadlineError, EngineError, UsageError
from llmos.infer import core as core_module
from llmos.infer.core import EngineCore, Limits
from llmos.infer.lookup import PromptLookup
from llmos.infer.messages import CoreRequest, Outcome
from llmos.infer.patience import TIMES
from llmos.infer.request import Grammar, SamplingParams
from llmos.infer.speculative import Speculation, StepCost
from llmos.models import Tokenizer
from tests.unit.infer.fakes import PageRunner, answer, following

_ids = map(str, itertools.count())


def _core(runner: PageRunner | None = None, *, budget: int = 32, running: int = 8, **more: Any) -> EngineCore:
    limits = Limits(running, budget, 200)
    return EngineCore(runner or PageRunner(), limits, **{"tokenizer": _no_tokenizer, **more})


def _no_tokenizer() -> Tokenizer:
    raise AssertionError("nobody asked for a grammar")


def _request(prompt: Sequence[int], count: int = 6, ends: frozenset[int] = frozenset(), **more: Any) -> CoreRequest:
    sampling = SamplingParams(temperature=0, **more.pop("sampling", {}))
    limit = len(prompt) + count
    return CoreRequest(next(_ids), tuple(prompt), sampling, 0, limit, ends, time.monotonic(), **more)


def _run(core: EngineCore, steps: int = 200) -> dict[str, list[Outcome]]:
    """What everybody gets until there is nothing to do."""
    found: dict[str, list[Outcome]] = {}
    for _ in range(steps):
        if not core.busy:
            return found
        for outcome in core.step():
            found.setdefault(outcome.id, []).append(outcome)
    raise AssertionError(f"busy after {steps} steps")


def _tokens(outcomes: list[Outcome]) -> list[int]:
    return [token for outcome in outcomes for token in outcome.tokens]


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("blocks", [64, 14])
def test_everybody_gets_the_tokens_that_follow_its_own(depth: int, blocks: int) -> None:
    """Also with several steps in flight, and with so few blocks that some are preempted."""
    runner = PageRunner(blocks, depth)
    core = _core(runner, budget=24 * depth)
    asked = [_request(range(i, i + 5 + 9 * i), 20 + i) for i in range(7)]
    for request in asked:
        core.add(request)
    found = _run(core)
    for request in asked:
        assert _tokens(found[request.id]) == answer(request.prompt, request.limit - len(request.prompt))
        assert [outcome.reason for outcome in found[request.id]][-1] == "length"
    assert runner.most_started == depth
    stats = core.stats()
    assert (stats["running"], stats["waiting"], stats["blocks_free"]) == (0, 0, blocks)
    assert (stats["preemptions"] > 0) == (blocks == 14)


def test_an_end_token_ends_the_answer_and_is_its_last() -> None:
    full = answer((5, 6), 30)
    end = full[9]
    core = _core()
    stopped = _request((5, 6), 30, frozenset({end}))
    ignoring = _request((5, 6), 30, frozenset({end}), sampling={"ignore_eos": True})
    other = _request(
        (5, 6), 30, frozenset({end}), sampling={"ignore_eos": True, "stop_token_ids": frozenset({full[4]})}
    )
    for request in (stopped, ignoring, other):
        core.add(request)
    found = _run(core)
    assert _tokens(found[stopped.id]) == full[: full.index(end) + 1]
    assert _tokens(found[ignoring.id]) == full
    assert _tokens(found[other.id]) == full[: full.index(full[4]) + 1]
    assert [found[r.id][-1].reason for r in (stopped, ignoring, other)] == ["stop", "length", "stop"]


@pytest.mark.parametrize("depth", [1, 2])
def test_cancelling_frees_blocks_within_one_step(depth: int) -> None:
    core = _core(PageRunner(depth=depth))
    stays, goes = _request((1, 2, 3), 40), _request(range(30), 40)
    core.add(stays)
    core.add(goes)
    for _ in range(5):
        core.step()
    held = 64 - core.stats()["blocks_free"]
    core.cancel(goes.id)
    core.cancel("nobody")
    late = core.step()
    assert [outcome.id for outcome in late] == [stays.id] * len(late)
    assert 64 - core.stats()["blocks_free"] <= held - 2
    assert _tokens(_run(core)[stays.id])[-1] == answer((1, 2, 3), 40)[-1]


def test_logits_that_are_not_numbers_end_one_request() -> None:
    runner = PageRunner()
    good, bad = _request((1, 2, 3), 12), _request((9, 9), 12)
    runner.nan_after = answer((9, 9), 3)[-1]
    assert runner.nan_after not in (good.prompt, answer((1, 2, 3), 12))
    core = _core(runner)
    core.add(good)
    core.add(bad)
    found = _run(core)
    assert _tokens(found[good.id]) == answer((1, 2, 3), 12)
    assert _tokens(found[bad.id]) == answer((9, 9), 3)
    assert isinstance(found[bad.id][-1].error, EngineError)
    assert core.stats()["blocks_free"] == 64


def test_deadlines_end_those_who_run_and_those_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    core = _core(running=1)
    runs = _request((1,), 100, deadline=time.monotonic() + 60)
    waits = _request((2,), 100, deadline=time.monotonic() + 30)
    patient = _request((3,), 4)
    for request in (runs, waits, patient):
        core.add(request)
    core.step()
    passed = time.monotonic() + 61
    monkeypatch.setattr(core_module.time, "monotonic", lambda: passed)
    found = _run(core)
    for request, made in ((runs, 1), (waits, 0)):
        error = found[request.id][-1].error
        assert isinstance(error, DeadlineError) and f"{made} of 100 tokens" in error.message
    assert _tokens(found[patient.id]) == answer((3,), 4)


def test_what_can_never_run_is_refused_alone() -> None:
    core = _core(PageRunner(blocks=4))
    too_long, fits = _request(range(60), 100), _request((1,), 3)
    core.add(too_long)
    core.add(fits)
    found = _run(core)
    assert isinstance(found[too_long.id][0].error, ContextLengthError)
    assert _tokens(found[fits.id]) == answer((1,), 3)


def test_a_runner_that_fails_ends_everything() -> None:
    runner = PageRunner()
    core = _core(runner)
    core.add(_request((1,)))
    runner.broken = RuntimeError("the device is gone")
    with pytest.raises(RuntimeError, match="the device is gone"):
        core.step()


def test_a_prompt_that_was_there_is_not_read_again() -> None:
    runner = PageRunner()
    core = _core(runner, budget=512)
    prompt = tuple(range(80))
    for tenant, rate in (("a", 0.0), ("a", 64 / 160), ("b", 64 / 240)):
        request = _request(prompt, 3, tenant=tenant)
        core.add(request)
        assert _tokens(_run(core)[request.id]) == answer(prompt, 3)
        assert core.stats()["prefix_hit_rate"] == pytest.approx(rate, abs=1e-3)


def test_a_better_runner_takes_over_in_the_middle_of_answers() -> None:
    first, second = PageRunner(), PageRunner(blocks=32)
    better: Future[Any] = Future()
    core = _core(first, better=better)
    asked = [_request(range(i, 25 + i), 20) for i in range(3)]
    for request in asked:
        core.add(request)
    found = [outcome for _ in range(6) for outcome in core.step()]
    better.set_result(lambda: second)
    found += [outcome for outcomes in _run(core).values() for outcome in outcomes]
    for request in asked:
        assert _tokens([o for o in found if o.id == request.id]) == answer(request.prompt, 20)
    assert first.closed and not second.closed
    assert second.steps > 10
    assert core.stats()["blocks"] == 32


@pytest.mark.parametrize(
    "error",
    [EngineError("no compiler"), OSError(28, "no compiler"), RuntimeError("no compiler"), SystemExit("no compiler")],
    ids=repr,
)
def test_a_better_runner_that_fails_changes_nothing(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    better: Future[Any] = Future()
    better.set_exception(error)
    core = _core(better=better)
    request = _request((4, 5))
    core.add(request)
    assert _tokens(_run(core)[request.id]) == answer((4, 5), 6)
    assert "no compiler" in caplog.text


def test_a_better_runner_whose_first_step_fails_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    better: Future[Any] = Future()
    first, second = PageRunner(), PageRunner(blocks=32)
    second.broken = RuntimeError("an illegal instruction")
    core = _core(first, better=better)
    request = _request((4, 5), 20)
    core.add(request)
    found = core.step() + core.step()
    better.set_result(lambda: second)
    found += _run(core)[request.id]
    assert _tokens(found) == answer((4, 5), 20)
    assert "an illegal instruction" in caplog.text
    assert second.closed and not first.closed and core.stats()["blocks"] == 64


def test_a_grammar_that_is_none_is_its_requests_own_error(model_dir: Path) -> None:
    core = _core(tokenizer=lambda: Tokenizer.load(model_dir))
    wrong = _request((1,), 6, frozenset({2}), sampling={"grammar": Grammar("regex", "(")})
    fine = _request((1,), 40)
    core.add(wrong)
    core.add(fine)
    found = _run(core, 10**6)
    assert isinstance(found[wrong.id][0].error, UsageError)
    assert _tokens(found[fine.id]) == answer((1,), 40)
    core.close()


def test_a_step_that_takes_too_long_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = PageRunner()
    core = _core(runner)
    seen = []
    start = runner.start

    def slow(step: Any) -> None:
        seen.append(core.overdue_s())
        late = time.monotonic() + core_module.HANG_S + 1
        with monkeypatch.context() as patch:
            patch.setattr(core_module.time, "monotonic", lambda: late)
            seen.append(core.overdue_s())
        start(step)

    monkeypatch.setattr(runner, "start", slow)
    core.add(_request((1,), 1))
    core.step()
    assert seen[0] is None and seen[1] == pytest.approx(core_module.HANG_S + 1, abs=0.5)
    assert core.overdue_s() is None


def test_how_long_a_step_may_take_grows_with_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with those that a step may have: 16 tokens in 4 s say nothing against 12 s for one."""
    now, limits = [0.0], []
    monkeypatch.setattr(core_module.time, "monotonic", lambda: now[0])
    runner = PageRunner()
    finish = runner.finish

    def slow() -> Any:
        now[0] += 4.0
        return finish()

    monkeypatch.setattr(runner, "finish", slow)
    core = _core(runner, budget=64)
    monkeypatch.setattr(runner, "start", lambda step: limits.append(core._limit_s) or runner.started.append(step))
    core.add(_request(range(64), 2))
    _run(core)
    assert limits == [4 * TIMES * 4.0, TIMES * 4.0]


class _Remote(PageRunner):
    """A runner whose processes are others."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = False

    def watch(self) -> None:
        if self.lost:
            raise EngineError("rank 1 is gone")


def test_a_runner_that_is_lost_while_nothing_runs_ends_everything() -> None:
    runner = _Remote()
    core = _core(runner)
    assert core.step() == [] and not core.busy
    runner.lost = True
    with pytest.raises(EngineError, match="rank 1 is gone"):
        core.step()


def test_drafts_change_no_token_and_save_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two answers, one repeats its prompt, which lookup foresees."""
    monkeypatch.setattr(StepCost, "per_token_s", 0.0)  # then drafts always pay
    monkeypatch.setattr(StepCost, "seconds", lambda *_: 1.0)
    repeats, other = tuple(range(50, 60)) * 3, (1, 2, 3)
    steps = []
    for speculation in (None, lambda _: Speculation(PromptLookup(), 4)):
        runner = PageRunner(
            follow=lambda tokens: int(tokens[-10]) if tokens[0] == 50 and len(tokens) > 29 else following(tokens)
        )
        core = _core(runner, speculation=speculation)
        asked = [_request(repeats, 60), _request(other, 15)]
        for request in asked:
            core.add(request)
        found = _run(core)
        assert _tokens(found[asked[0].id]) == list(repeats) * 2
        assert _tokens(found[asked[1].id]) == answer(other, 15)
        assert core.stats()["blocks_free"] == 64
        steps.append(runner.steps)
    assert core.stats()["drafts_accepted"] > 40
    assert steps[1] < steps[0] / 2
