"""Drafts: where they come from, when they pay, and that answers stay what they are."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from llmos.errors import UsageError
from llmos.infer.draft_model import READ_TOKENS, DraftModel
from llmos.infer.lookup import PromptLookup
from llmos.infer.request import SamplingParams
from llmos.infer.sampling import Sampled, Sampler
from llmos.infer.speculative import RETRY_STEPS, Ask, Speculation, StepCost
from llmos.infer.step import Step
from tests.unit.infer.fakes import VOCAB, PageRunner, answer, following
from tests.unit.infer.small import CONTEXT, request, running, whole

MOST = 5


def _lookup(tokens: Sequence[int], most: int = MOST) -> tuple[int, ...]:
    return PromptLookup().draft([Ask("a", tokens, most)])[0]


@pytest.mark.parametrize(
    ("tokens", "drafts"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 1, 2], (3, 4, 5, 6, 7)),
        ([1, 2, 9, 5, 1, 2, 3, 5, 1, 2], (3, 5, 1, 2, 3)),  # what came last, and round again
        ([7, 1, 2, 9, 9, 9, 3, 1, 2, 4, 4, 4, 7, 1, 2], (9, 9, 9, 3, 1)),  # the longer match
        ([1, 1, 1], (1, 1, 1, 1, 1)),
        ([1, 2, 3, 4, 2], ()),  # one token alone says too little
        ([1], ()),
        ([], ()),
    ],
    ids=str,
)
def test_what_followed_the_last_tokens_before(tokens: list[int], drafts: tuple[int, ...]) -> None:
    assert _lookup(tokens) == drafts


def test_a_lookup_that_goes_on_finds_what_a_new_one_finds() -> None:
    tokens = torch.randint(3, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    one = PromptLookup()
    found = [one.draft([Ask("a", tokens[:n], 3), Ask("b", tokens[: n // 2], 3)])[0] for n in range(1, 200, 3)]
    assert found == [_lookup(tokens[:n], 3) for n in range(1, 200, 3)]
    one.remove("a")
    assert one.draft([Ask("a", [1, 2], 3)]) == [()]


class World:
    """A drafter that is right with a probability, and a clock by which steps take what they take."""

    def __init__(self, right: float, base_s: float, token_s: float, draft_s: float = 0.0, most: int = 4) -> None:
        self.right, self.base_s, self.token_s, self.draft_s = right, base_s, token_s, draft_s
        self.now_s = 0.0
        self.removed: list[str] = []
        self.speculation = Speculation(self, most, lambda: self.now_s)
        self._generator = torch.Generator().manual_seed(0)

    def draft(self, asked: Sequence[Ask]) -> list[tuple[int, ...]]:
        self.now_s += self.draft_s * sum(ask.most for ask in asked)
        return [(0,) * ask.most for ask in asked]

    def remove(self, id: str) -> None:
        self.removed.append(id)

    def close(self) -> None:
        self.removed.append("all")

    def run(self, steps: int, running: int = 1) -> tuple[float, list[int]]:
        """Tokens per second, and the drafts of each step, of the last half of ``steps``."""
        ids, tokens, counts = [str(n) for n in range(running)], 0, []
        for step in range(steps):
            if step == steps // 2:
                began_s, tokens = self.now_s, 0
            step_began_s = self.now_s
            drafts = self.speculation.propose([Ask(id, (), 99) for id in ids])
            counts.append(sum(map(len, drafts.values())))
            self.now_s += self.base_s + self.token_s * (running + counts[-1])
            self.speculation.stepped(running + counts[-1], self.now_s - step_began_s)
            for id in ids:
                made = len(drafts.get(id, ()))
                accepted = next((k for k in range(made) if self._chance() >= self.right), made)
                self.speculation.settle(id, made, accepted)
                tokens += accepted + 1
        return tokens / (self.now_s - began_s), counts[steps // 2 :]

    def _chance(self) -> float:
        return float(torch.rand((), generator=self._generator))


@pytest.mark.parametrize(
    ("world", "running", "drafts"),
    [
        ({"right": 0.95, "base_s": 0.01, "token_s": 0.0005}, 1, (3.5, 4)),
        ({"right": 0.95, "base_s": 0.01, "token_s": 0.0005, "most": 9}, 1, (7, 9)),
        ({"right": 0.5, "base_s": 0.01, "token_s": 0.001}, 1, (1.5, 3.5)),
        ({"right": 0.02, "base_s": 0.01, "token_s": 0.002}, 1, (0, 0.1)),  # it does not foresee the text
        ({"right": 0.6, "base_s": 0.001, "token_s": 0.01}, 8, (0, 0.6)),  # nearly every token costs as much
        ({"right": 0.8, "base_s": 0.01, "token_s": 0.0001, "draft_s": 0.012}, 1, (0, 0.1)),  # drafts cost too much
        ({"right": 0.9, "base_s": 0.01, "token_s": 0.0001, "draft_s": 0.001}, 1, (3, 4)),
    ],
    ids=str,
)
def test_as_many_drafts_as_pay(world: dict[str, Any], running: int, drafts: tuple[float, float]) -> None:
    speed, counts = World(**world).run(600, running)
    assert drafts[0] <= sum(counts) / len(counts) <= drafts[1]
    plain = running / (world["base_s"] + world["token_s"] * running)
    assert speed > (plain * 1.05 if drafts[0] else plain * 0.97)


def test_what_did_not_pay_is_tried_again() -> None:
    world = World(right=0.0, base_s=0.01, token_s=0.002)
    counts = world.run(400)[1]
    assert max(counts) == 1 and counts.count(1) == pytest.approx(200 / (RETRY_STEPS + 1), abs=2)
    world.right = 1.0
    assert sum(world.run(400)[1]) > 3.5 * 200


def test_the_numbers_of_drafts_and_what_was_accepted() -> None:
    world = World(right=1.0, base_s=1.0, token_s=0.0)
    assert world.speculation.stats() == {
        **{"drafts": 0, "drafts_accepted": 0, "draft_acceptance": None, "draft_off": 0.0}
    }
    world.run(10)
    assert world.speculation.stats() == {
        **{"drafts": 36, "drafts_accepted": 36, "draft_acceptance": 1.0, "draft_off": 0.0}
    }
    for _ in range(2):
        world.speculation.remove("0")
    world.speculation.settle("0", 4, 4)  # of a step that was on its way
    assert world.speculation.stats()["drafts"] == 36
    world.speculation.close()
    assert world.removed == ["0", "all"]


def test_the_cost_of_a_step_is_a_line_through_what_was_measured() -> None:
    cost = StepCost()
    assert not cost.known
    cost.add(2, 0.5)
    assert cost.known and cost.seconds(2) == pytest.approx(0.5) and cost.per_token_s == 0
    for tokens in (1, 4, 9, 2):
        cost.add(tokens, 0.3 + 0.1 * tokens)
    assert cost.per_token_s == pytest.approx(0.1) and cost.seconds(20) == pytest.approx(2.3)


def _draft_model(
    blocks: int = 64, temperature: float = 0.0, context_length: int = 10**6
) -> tuple[PageRunner, DraftModel, Sampler]:
    runner, sampler = PageRunner(blocks), Sampler()
    for number, id in enumerate("ab"):
        sampler.add(id, SamplingParams(temperature=temperature), number, (), frozenset())
    return runner, DraftModel(runner, sampler, VOCAB, context_length), sampler


def test_a_draft_model_says_what_it_would_answer() -> None:
    _, model, _ = _draft_model()
    a, b = [3, 1, 4, 1, 5], [2, 7]
    for _ in range(12):  # sometimes all of its drafts are taken, sometimes none, and then something else comes
        for tokens, most, taken, other in ((a, 3, 3, following), (b, 4, 1, lambda _: 50)):
            drafts = dict(zip("ab", model.draft([Ask("a", a, 3), Ask("b", b, 4)]), strict=True))[
                "a" if tokens is a else "b"
            ]
            assert drafts == tuple(answer(tokens, most))
            tokens += drafts[:taken]
            tokens.append(other(tokens))


def test_it_draws_with_the_numbers_of_the_tokens_to_come() -> None:
    """The draft model is the model: all of its drafts are right, at any temperature."""
    runner, model, sampler = _draft_model(temperature=4.0)
    tokens = [3, 1, 4]
    for _ in range(30):
        drafts = model.draft([Ask("b", tokens, 4)])[0]
        rows = [
            torch.zeros(VOCAB).index_fill(0, torch.tensor(following([*tokens, *drafts[:k]])), 9.0) for k in range(5)
        ]
        got = sampler.verify([("b", drafts)], torch.stack(rows))[0]
        assert isinstance(got, Sampled) and got.tokens[:4] == drafts
        tokens += got.tokens
    assert len(set(tokens)) > 20 and tokens != [3, 1, 4, *answer([3, 1, 4], 150)]
    assert runner.steps <= 30 * 4 + 1


def test_a_long_prompt_is_read_in_parts_beside_the_others() -> None:
    _, model, _ = _draft_model()
    asked = [Ask("a", [5] * (2 * READ_TOKENS + 9), 2), Ask("b", [1, 2], 2)]
    found = [model.draft(asked) for _ in range(3)]
    assert [len(row[0]) for row in found] == [0, 0, 2] and {row[1] for row in found} == {tuple(answer([1, 2], 2))}
    assert found[2][0] == tuple(answer(asked[0].tokens, 2))


def test_without_room_there_are_no_drafts_and_room_comes_back() -> None:
    _, model, _ = _draft_model(blocks=4)
    long, short = Ask("a", [1] * 60, 4), Ask("b", [2, 3], 4)
    assert [len(drafts) for drafts in model.draft([long, short])] == [4, 0]
    model.remove("a")
    model.remove("a")
    assert [len(drafts) for drafts in model.draft([short])] == [4]
    assert [len(drafts) for drafts in model.draft([Ask("a", [1] * 65, 4), short])] == [0, 4]


def test_nothing_is_computed_beyond_the_context_of_the_draft_model(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, model, _ = _draft_model(context_length=20)
    start, last = runner.start, [0]

    def watched(step: Step) -> None:
        last[0] = max(last[0], int(step.positions_N.max()))
        start(step)

    monkeypatch.setattr(runner, "start", watched)
    counts = [len(model.draft([Ask("a", [1] * n, 4), Ask("b", [2, 3], 4)])[0]) for n in range(15, 24)]
    assert counts == [4, 4, 4, 3, 2, 1, 0, 0, 0]
    assert last[0] == 19
    assert model.draft([Ask("a", [1] * 9, 4)]) == [tuple(answer([1] * 9, 4))]


def test_no_more_drafts_are_asked_for_than_the_answer_has_room_for() -> None:
    world = World(right=1.0, base_s=1.0, token_s=0.0)
    world.run(10)
    asked = [Ask("0", (), 2), Ask("1", (), 0), Ask("2", (), 9)]
    assert {id: len(drafts) for id, drafts in world.speculation.propose(asked).items()} == {"0": 2, "2": 4}


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(UsageError, match=f"101 tokens, the model {VOCAB + 1}") as caught:
        DraftModel(PageRunner(), Sampler(), VOCAB + 1, 99)
    assert caught.value.param == "draft"


def test_closing_ends_the_runner() -> None:
    runner, model, _ = _draft_model()
    model.close()
    assert runner.closed


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 3}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("drafter", ["lookup", "model"])
async def test_an_engine_with_drafts_answers_what_one_without_does(
    model_dir: Path, drafter: str, sampling: dict[str, Any]
) -> None:
    prompts = [(5, 6, 7), (9, 8, 9, 8, 9, 8), tuple(range(20, 60))]
    texts: list[list[str]] = []
    for options in ({}, {"speculative": 3, "draft": model_dir if drafter == "model" else None}):
        async with running(model_dir, **options) as engine:
            asked = [whole(engine, request(prompt, max_tokens=48, **sampling)) for prompt in prompts]
            texts.append([event.text for event in await asyncio.gather(*asked)])
            stats = engine.stats()
    assert texts[0] == texts[1]
    if drafter == "model":  # it is the model itself
        assert stats["drafts"] > 0 and stats["drafts_accepted"] > 0.9 * stats["drafts"]


@pytest.mark.parametrize("shorter", [False, True])
async def test_drafts_end_with_the_context(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shorter: bool
) -> None:
    """Of the model, or of a draft model that has a shorter one; the native step takes no position beyond it."""
    monkeypatch.setattr(StepCost, "per_token_s", 0.0)  # then drafts always pay
    monkeypatch.setattr(StepCost, "seconds", lambda *_: 1.0)
    draft = shutil.copytree(model_dir, tmp_path / "draft")
    if shorter:
        config = json.loads((draft / "config.json").read_text())
        (draft / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 40}))
    prompts = [tuple(range(5, 5 + length)) for length in range(3, 10)]  # the last drafts begin at every distance
    answers = []
    for options in ({}, {"speculative": 5, "draft": draft}):
        async with running(model_dir, runner="native", **options) as engine:
            asked = [whole(engine, request(prompt, max_tokens=None)) for prompt in prompts]
            answers.append([event.token_ids for event in await asyncio.gather(*asked)])
            assert engine.stats()["healthy"]
    assert answers[0] == answers[1] and [len(one) for one in answers[0]] == [CONTEXT - len(p) for p in prompts]
