"""The rows of serving, and how engines are compared: on the same requests, each at its own best."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import pytest

from benchmarks import serve
from benchmarks.rows import Measured, Target
from benchmarks.serve_compare import Engine, Setting, Workload, compare
from benchmarks.serve_load import Load, Prompt, prompts
from benchmarks.serve_models import QWEN_500M, SMOLLM_135M, tokenizer

NAMES = [
    *("decode_b1", "decode_c8", "decode_c32", "decode_c64"),
    *("roofline_b1", "fallback_b1", "fallback_c32", "prefill_2048", "int8_b1", "int4_b1", "tp2", "pp2"),
    *("shared_prefix_ttft", "block_replay", "cold_start", "spec_decode", "gpu_roofline_b1", "gpu_decode_c256"),
]


class Paced:
    """Answers at ``rate`` tokens/s, by its own account, and remembers what it was asked."""

    def __init__(self, rate: float) -> None:
        self.rate, self.open = rate, True
        self.asked: list[list[Prompt]] = []

    def run(self, asked: Sequence[Prompt], concurrency: int, new: int = 32) -> Load:
        assert self.open
        self.asked.append(list(asked))
        return Load(new * len(asked), new * len(asked) / self.rate, (0.1,), (0.01,))

    def close(self) -> None:
        self.open = False


def test_every_row_of_serving_is_there_and_has_a_function() -> None:
    assert [row.name for row in serve.ROWS] == NAMES
    for row in serve.ROWS:
        module, function = row.run.split(":")
        assert callable(getattr(import_module(module), function)), row.run


def test_engines_are_compared_each_at_its_best_on_prompts_that_none_has_seen() -> None:
    one, two, slow = Setting(1), Setting(2), Setting(2, "float32")
    paced = {("a", one): Paced(10), ("a", two): Paced(30), ("b", one): Paced(15), ("b", slow): Paced(5)}
    engines = {
        name: Engine(lambda setting, name=name: paced[name, setting], [s for other, s in paced if other == name])
        for name in "ab"
    }
    table = compare(engines, [Workload("w", 2, 4)], turns=3, title="test")
    ours, peer = table["w"]["a"], table["w"]["b"]
    assert (ours.setting, peer.setting) == (two, one)
    assert (ours.rate, peer.rate, ours.over(peer)) == (pytest.approx(30), pytest.approx(15), pytest.approx(2))
    assert "1 threads, bfloat16: 10, 2 threads, bfloat16: 30" in str(ours)
    best, worse = paced["a", two], paced["a", one]
    assert len(best.asked) == 1 + 1 + 3 and len(worse.asked) == 1 + 1  # one to warm up, one to try
    assert best.asked[1:] == paced["b", one].asked[1:]
    seen = [tuple(prompt) for asked in best.asked for prompt in asked]
    assert len(set(seen)) == len(seen)
    assert not any(engine.open for engine in paced.values())


def test_a_setting_far_from_the_best_is_not_tried_with_the_next_workload() -> None:
    paced = {Setting(1): Paced(10), Setting(2): Paced(30), Setting(2, "float32"): Paced(25)}
    engines = {"a": Engine(lambda setting: paced[setting], list(paced))}
    table = compare(engines, [Workload("v", 1, 1), Workload("w", 1, 1)], turns=1, title="test")
    assert list(table["v"]["a"].tried) == list(paced)
    assert list(table["w"]["a"].tried) == [Setting(2), Setting(2, "float32")]


def test_what_was_started_ends_when_another_cannot_start() -> None:
    first = Paced(10)

    def broken(setting: Setting) -> Paced:
        raise RuntimeError("no such engine")

    engines = {"a": Engine(lambda _: first, [Setting(1)]), "b": Engine(broken, [Setting(1)])}
    with pytest.raises(RuntimeError, match="no such engine"):
        compare(engines, [Workload("w", 1, 1)], turns=1, title="test")
    assert not first.open


def test_a_rate_is_of_the_tokens_read_where_one_is_generated() -> None:
    load = Load(1, 2.0)
    assert Workload("prefill", 1, 1, prompt=2048, new=1).rate(load) == 1024
    assert Workload("decode", 1, 1, prompt=2048, new=2).rate(load) == 0.5


def test_prompts_share_what_they_are_told_to() -> None:
    first, second = prompts(2, 100, common=80)
    assert first[:80] == second[:80] and first[80:] != second[80:]
    assert len(first) == len(second) == 100
    assert prompts(2, 100, seed=1) != prompts(2, 100, seed=2)


def test_a_step_reads_the_bytes_that_the_models_are_known_for() -> None:
    assert SMOLLM_135M.read_bytes / 2 == pytest.approx(134.5e6, rel=0.001)
    assert QWEN_500M.read_bytes / 2 == pytest.approx(494e6, rel=0.001)


def test_every_token_of_the_tokenizer_is_text() -> None:
    found = tokenizer(1500)
    assert found.vocab_size == 1500 and found.eos_id == 1499
    assert found.decode(found.encode("a walk in the park")) == "a walk in the park"
    assert all(found.decode([token]).isalpha() for token in range(256, 1499))


def test_a_target_may_be_of_something_else_that_was_measured() -> None:
    found = Measured(1.0, 1.0, 1.0, also={"ttft_ratio": 0.9})
    assert Target("ttft_ratio", most=1).met(found)
    assert not Target("ttft_ratio", most=0.5).met(found)
    assert not Target("another", least=0).met(found)
