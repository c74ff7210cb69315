"""The native step against a plain forward pass: every shape, every way to cut a batch, every format of weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from llmos.errors import EngineError
from llmos.infer.native.bindings import native_step
from llmos.infer.native.build import find_compiler
from llmos.infer.native.runner import NativeModel, NativeRunner, Span
from llmos.infer.shard import Matrix, Shard
from llmos.infer.step import Step
from llmos.models import ModelConfig
from tests.unit.infer.random_shard import SHAPE, Pages, change, logits_of, plain, random_matrix, random_shard

BLOCKS = 96

pytestmark = pytest.mark.timeout(300)  # the first of them compiles


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    try:
        find_compiler()
    except EngineError as error:
        pytest.skip(f"no native step here: {error}")
    native_step()  # with a compiler, there must be one


def texts_of(*lengths: int) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randint(0, SHAPE.vocab_size, (length,)) for length in lengths]


def replayed(shard: Shard, texts: list[Tensor], steps: list[dict[int, int]], **options: int) -> list[Tensor]:
    """Logits [T, V] of every text, computed in ``steps``."""
    runner = NativeRunner(shard, BLOCKS, **{"threads": 2, **options})
    pages, parts = Pages(texts, BLOCKS), [[] for _ in texts]  # type: tuple[Pages, list[list[Tensor]]]
    for counts in steps:
        runner.start(pages.step(counts))
        for text, part in zip(counts, runner.finish().split(list(counts.values())), strict=True):
            parts[text].append(part)
    assert pages.done == [len(text) for text in texts]
    runner.close()
    return [torch.cat(part) for part in parts]


RAGGED: list[dict[int, int]] = [
    {0: 23},  # a chunk of a prompt
    {0: 14, 1: 1, 2: 37},  # chunks of several, of odd lengths
    {1: 1, 2: 1},  # one token each
    *[{0: 1, 1: 1, 2: 1}] * 3,
    {2: 5, 0: 1, 1: 4},  # several tokens a sequence, as with drafts
]
LENGTHS = (41, 9, 46)

SHAPES = {
    "one key head": change(num_kv_heads=1),
    "as many key heads": change(num_kv_heads=6),
    "head of 32": change(head_dim=32),
    "head of 64": change(head_dim=64, num_heads=3, num_kv_heads=1),
    "head of 128": change(head_dim=128, num_heads=2, num_kv_heads=2),
    "head of 40": change(head_dim=40),
    "head of 80": change(head_dim=80, num_heads=2, num_kv_heads=1),
    "head of 6": change(head_dim=6),
    "odd sizes": change(hidden_size=45, intermediate_size=51, vocab_size=101, num_heads=5, num_kv_heads=5, head_dim=10),
    "window": change(architecture="mistral", sliding_window=7),
    "window beyond a block": change(architecture="mistral", sliding_window=21),
}


def check(shard: Shard, texts: list[Tensor], found: list[Tensor], bound: float = 1e-4) -> None:
    for text, logits_TV in zip(texts, found, strict=True):
        torch.testing.assert_close(logits_TV, logits_of(shard, text), atol=bound, rtol=0)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_every_shape_and_every_cut(config: ModelConfig) -> None:
    shard, texts = random_shard(config), texts_of(*LENGTHS)
    check(shard, texts, replayed(shard, texts, RAGGED))


@pytest.mark.parametrize(("bias", "norms"), [(True, False), (False, True), (True, True)])
def test_biases_and_norms_of_heads(bias: bool, norms: bool) -> None:
    shard, texts = random_shard(SHAPE, bias=bias, norms=norms), texts_of(*LENGTHS)
    check(shard, texts, replayed(shard, texts, RAGGED))


def test_a_long_prompt_at_once_and_in_chunks() -> None:
    """Beyond what the cache of a core holds, and beyond a block of keys."""
    shard, texts = random_shard(SHAPE), texts_of(700)
    check(shard, texts, replayed(shard, texts, [{0: 700}]))
    check(shard, texts, replayed(shard, texts, [{0: 130}, {0: 569}, {0: 1}]))


@pytest.mark.parametrize("window", [None, 300])
def test_threads_share_the_keys_of_a_long_sequence(window: int | None) -> None:
    shard = random_shard(change(architecture="mistral", sliding_window=window, num_kv_heads=1))
    texts = texts_of(900)
    check(shard, texts, replayed(shard, texts, [{0: 898}, {0: 1}, {0: 1}], threads=3))


def test_as_many_layers_as_large_models_have() -> None:
    """With the keys shared out, a layer has one phase more."""
    shard = random_shard(change(num_layers=80, num_kv_heads=1))
    texts = texts_of(600)
    check(shard, texts, replayed(shard, texts, [{0: 598}, {0: 1}, {0: 1}]), bound=1e-3)


@pytest.mark.parametrize(("bits", "bound"), [(16, 0.1), (8, 0.1), (4, 0.1)])
@pytest.mark.parametrize("config", [SHAPE, change(num_heads=4, hidden_size=64, intermediate_size=96)])
def test_other_formats_are_as_good_as_their_weights(bits: int, bound: float, config: ModelConfig) -> None:
    """The cache is in bf16, as are activations where the processor multiplies it; logits are about 1 wide."""
    shard, texts = random_shard(config, bits), texts_of(*LENGTHS)
    check(shard, texts, replayed(shard, texts, RAGGED), bound)
    if native_step().instructions != "AVX512-BF16":
        check(shard, texts, replayed(shard, texts, RAGGED, cache_bits=32))


def test_formats_may_differ_between_matrices() -> None:
    shard = random_shard(SHAPE, 4)
    assert shard.output is not None
    rows, columns = shard.output.weight.shape
    for output in (Matrix(plain(shard.output), 32), random_matrix(rows, columns, 8, 0)):
        mixed = dataclasses.replace(shard, output=output)
        check(mixed, texts_of(*LENGTHS), replayed(mixed, texts_of(*LENGTHS), RAGGED), 0.1)


def test_what_a_block_held_before_does_not_matter() -> None:
    """Also if it was not a number: a request that failed leaves its blocks to others."""
    shard = random_shard(SHAPE, 16)
    assert shard.embedding_VD is not None
    shard.embedding_VD[0] = torch.nan
    runner = NativeRunner(shard, 4, threads=1)
    for text, counts in ((torch.zeros(32, dtype=torch.long), [32]), (texts_of(17)[0].clamp(1), [3, 4, 9, 1])):
        pages, parts = Pages([text], 4), []
        for count in counts:
            runner.start(pages.step({0: count}))
            parts.append(runner.finish())
        logits_TV = torch.cat(parts)
    torch.testing.assert_close(logits_TV, logits_of(shard, text), atol=0.1, rtol=0)


def test_only_the_logits_that_are_asked_for() -> None:
    shard, (text,) = random_shard(SHAPE), texts_of(20)
    runner, step = NativeRunner(shard, BLOCKS, threads=1), Pages([text], BLOCKS).step({0: 20})
    for wanted in ([19], [3, 11], []):
        runner.start(dataclasses.replace(step, logits_at_L=np.array(wanted, np.int32)))
        found = runner.finish()
        assert found.shape == (len(wanted), SHAPE.vocab_size) and found.dtype == torch.float32
        torch.testing.assert_close(found, logits_of(shard, text)[wanted], atol=1e-4, rtol=0)


def columns_of(shard: Shard, rank: int) -> Shard:
    """Half of every matrix: a rank of a tensor-parallel pair."""

    def rows(weight: Tensor, *counts: int) -> Tensor:
        return torch.cat([part.chunk(2)[rank] for part in weight.split(counts)])

    width, layers = shard.config.head_dim, []
    for layer in shard.layers:
        sizes = shard.heads * width, shard.kv_heads * width, shard.kv_heads * width
        features = len(layer.gate_up.weight) // 2
        changes = {
            "qkv": Matrix(rows(layer.qkv.weight, *sizes), 32),
            "out": Matrix(layer.out.weight.chunk(2, 1)[rank], 32),
            "gate_up": Matrix(rows(layer.gate_up.weight, features, features), 32),
            "down": Matrix(layer.down.weight.chunk(2, 1)[rank], 32),
        }
        layers.append(dataclasses.replace(layer, **changes))
    return dataclasses.replace(shard, heads=shard.heads // 2, kv_heads=shard.kv_heads // 2, layers=tuple(layers))


def test_halves_of_two_ranks_add_up_to_the_whole() -> None:
    shard, texts = random_shard(SHAPE), texts_of(30)
    ranks = [NativeModel(columns_of(shard, rank), BLOCKS) for rank in range(2)]
    pages = Pages(texts, BLOCKS)
    step = pages.step({0: 30})
    hidden = ranks[0].hidden(30)
    ranks[0].run(step, Span(0, 0, embed=True), hidden, 1)
    for half in range(2 * SHAPE.num_layers):
        parts = [hidden.clone() for _ in ranks]
        for rank, (model, part) in enumerate(zip(ranks, parts, strict=True)):
            model.run(step, Span(half, half + 1, keep=rank == 0), part, 1)
        hidden = parts[0] + parts[1]
    logits = ranks[1].run(step, Span(0, 0, logits=True), hidden, 1)
    assert logits is not None
    check(shard, texts, [logits])


def test_stages_hand_on_hidden_states() -> None:
    shard, texts = random_shard(SHAPE), texts_of(30)
    first = NativeModel(dataclasses.replace(shard, layers=shard.layers[:1], norm_D=None, output=None), BLOCKS)
    last = NativeModel(dataclasses.replace(shard, first_layer=1, layers=shard.layers[1:], embedding_VD=None), BLOCKS)
    step = Pages(texts, BLOCKS).step({0: 30})
    hidden = first.hidden(30)
    assert first.run(step, Span(0, 2, embed=True), hidden, 1) is None
    logits = last.run(step, Span(0, 2, logits=True), hidden, 1)
    assert logits is not None
    check(shard, texts, [logits])


@pytest.fixture(scope="module")
def runner() -> Iterator[NativeRunner]:
    made = NativeRunner(random_shard(SHAPE), 4, threads=1)
    yield made
    made.close()


def changed(**changes: list[int] | list[list[int]]) -> Step:
    step = Step(*(np.array(part, np.int32) for part in ([5], [0], [0, 1], [[1]], [0])))
    return dataclasses.replace(step, **{name: np.array(value, np.int32) for name, value in changes.items()})


@pytest.mark.parametrize(
    ("step", "what"),
    [
        (changed(tokens_N=[97]), "token 97"),
        (changed(tokens_N=[-1]), "token -1"),
        (changed(positions_N=[64]), "position 64"),
        (changed(positions_N=[16]), "block 1 of its sequence"),
        (changed(blocks_SM=[[4]]), "block 4"),
        (changed(logits_at_L=[1]), "token to answer 1"),
    ],
)
def test_a_step_that_reaches_beyond_the_end_is_refused(runner: NativeRunner, step: Step, what: str) -> None:
    with pytest.raises(EngineError, match=what):
        runner.start(step)
    runner.start(changed())
    assert runner.finish().isfinite().all()


def test_steps_are_finished_in_turn(runner: NativeRunner) -> None:
    with pytest.raises(EngineError, match="no step was started"):
        runner.finish()
    runner.start(changed())
    with pytest.raises(EngineError, match="before the last was finished"):
        runner.start(changed())
    runner.finish()


def test_the_runner_says_what_it_uses(runner: NativeRunner) -> None:
    stats = runner.stats()
    assert stats["runner"] == "native" and stats["threads"] == 1
    assert stats["instructions"] in ("AVX512-BF16", "AVX512", "AVX2", "128-bit vectors")
    pages = 4 * SHAPE.num_layers * SHAPE.num_kv_heads * 16  # float32 keys and values of 16 tokens
    assert stats["cache_bytes"] == pages * SHAPE.head_dim * 2 * 4
