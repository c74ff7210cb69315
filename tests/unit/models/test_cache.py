"""Generation with a cache equals generation without, whatever else is in the batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmos.errors import CapacityError, ContextLengthError
from llmos.models import KVCache, Transformer
from tests.unit.models.small import SMALL, make


def _prompt(seed: int, length: int) -> list[int]:
    return torch.randint(0, SMALL.vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def _alone(model: Transformer, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens after ``prompt``, all computed anew each time."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def _padded(rows: list[list[int]], filler: int = 0) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def _prefill(model: Transformer, cache: KVCache, prompts: list[list[int]], filler: int = 0) -> list[int]:
    first = cache.rows
    for _ in prompts:
        cache.add()
    counts = list(map(len, prompts))
    logits = model(
        _padded(prompts, filler),
        cache=cache.step(counts, first),
        logits_at=torch.tensor([count - 1 for count in counts]),
    )
    return logits.argmax(-1).tolist()


@given(chunks=st.lists(st.integers(1, 40), min_size=1, max_size=5), seed=st.integers(0, 3))
@settings(max_examples=20, deadline=None)
@torch.no_grad()
def test_any_cut_of_a_text_gives_the_same_logits(chunks: list[int], seed: int) -> None:
    model, tokens = make(), torch.tensor([_prompt(seed, sum(chunks))])
    cache = KVCache(SMALL, max_rows=1, max_length=sum(chunks))
    cache.add()
    parts = [model(part, cache=cache.step([part.shape[1]])) for part in tokens.split(chunks, dim=1)]
    assert cache.lengths == [sum(chunks)]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_ragged_rows_generate_what_each_does_alone() -> None:
    model, prompts = make(), [_prompt(1, 3), _prompt(2, 40), _prompt(3, 1), _prompt(4, 17)]
    cache = KVCache(SMALL, max_rows=4, max_length=64)
    last = _prefill(model, cache, prompts)
    made = [[token] for token in last]
    for _ in range(15):
        last = model(torch.tensor(last)[:, None], cache=cache.step([1] * 4))[:, -1].argmax(-1).tolist()
        for row, token in zip(made, last, strict=True):
            row.append(token)
    assert made == [_alone(model, prompt, 16) for prompt in prompts]


@torch.no_grad()
def test_rows_come_and_go_between_steps() -> None:
    """Continuous batching: texts of different lengths share two rows; each is what it would be alone."""
    model = make()
    cache = KVCache(SMALL, max_rows=2, max_length=64)
    waiting = [(_prompt(seed, 2 + 7 * seed), 3 + 4 * (seed % 3)) for seed in range(6)]
    expected = [_alone(model, prompt, count) for prompt, count in waiting]
    made: dict[int, list[int]] = {}
    rows: list[int] = []  # which text each row holds
    while len(made) < 6 or rows:
        while cache.rows < 2 and len(made) < 6:
            number = len(made)
            rows.append(number)
            made[number] = _prefill(model, cache, [waiting[number][0]])
        last = torch.tensor([[made[number][-1]] for number in rows])
        for number, logits in zip(rows, model(last, cache=cache.step([1] * cache.rows))[:, -1], strict=True):
            made[number].append(int(logits.argmax()))
        for row in reversed(range(len(rows))):
            if len(made[rows[row]]) >= waiting[rows[row]][1]:
                moved = cache.remove(row)
                rows[row] = rows[moved]
                rows.pop()
    assert [made[number] for number in range(6)] == expected


@torch.no_grad()
def test_padding_and_neighbours_leave_no_trace() -> None:
    model, prompt = make(), _prompt(1, 10)
    outcomes = []
    for neighbour, filler in ((_prompt(2, 30), 0), (_prompt(3, 30), 5)):
        cache = KVCache(SMALL, max_rows=2, max_length=40)
        outcomes.append(
            (_prefill(model, cache, [prompt, neighbour], filler)[0], cache.keys_LBKSD[:, 0, :, :10].clone())
        )
    assert outcomes[0][0] == outcomes[1][0]
    assert torch.equal(outcomes[0][1], outcomes[1][1])


@torch.no_grad()
def test_a_removed_row_leaves_nothing_behind() -> None:
    model = make()
    cache = KVCache(SMALL, max_rows=3, max_length=32)
    _prefill(model, cache, [_prompt(1, 20), _prompt(2, 30), _prompt(3, 5)])
    cache.keys_LBKSD[:, 0] = cache.values_LBKSD[:, 0] = torch.nan  # row 0 went wrong; its neighbours must not
    third = cache.keys_LBKSD[:, 2, :, :5].clone()
    assert cache.remove(0) == 2
    assert cache.lengths == [5, 30]
    assert torch.equal(cache.keys_LBKSD[:, 0, :, :5], third)
    assert not cache.keys_LBKSD[:, 0, :, 5:].any() and not cache.keys_LBKSD[:, 2].any()
    assert cache.remove(1) == 1
    assert cache.lengths == [5] and not cache.values_LBKSD[:, 1].any()
    assert model(torch.tensor([[7]]), cache=cache.step([1])).isfinite().all()


def test_a_full_cache_says_so() -> None:
    cache = KVCache(SMALL, max_rows=1, max_length=8)
    cache.add()
    with pytest.raises(CapacityError, match="all 1 rows"):
        cache.add()
    with pytest.raises(ContextLengthError, match="row 0 holds 0 tokens and 9 more exceed the 8"):
        cache.step([9])


@torch.no_grad()
def test_a_row_may_be_filled_to_the_brim_beside_a_longer_step() -> None:
    """Padding behind a full row must not overwrite its last token."""
    model, full = make(), _prompt(1, 12)
    cache = KVCache(SMALL, max_rows=2, max_length=12)
    cache.add(), cache.add()
    model(torch.tensor([full[:11], _prompt(2, 11)]), cache=cache.step([11, 4]))
    logits = model(torch.tensor([full[11:] + [0] * 7, _prompt(3, 8)]), cache=cache.step([1, 8]))
    torch.testing.assert_close(logits[0, 0], model(torch.tensor([full]))[0, -1], rtol=1e-4, atol=1e-4)
    assert cache.lengths == [12, 12]
