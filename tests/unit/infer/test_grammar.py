"""Answers that obey a grammar, whatever the model would rather say."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from llmos.errors import EngineError, UsageError
from llmos.infer import grammar as grammars
from llmos.infer.grammar import Grammars, Matcher, masks
from llmos.infer.request import Grammar, SamplingParams
from llmos.infer.sampling import Sampled, Sampler
from llmos.models import Tokenizer

SCHEMA = {
    "$defs": {"tag": {"enum": ["a", "bb", "ü"]}},
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 3},
        "code": {"type": "string", "pattern": "^[0-9]{3}$"},
    },
    "required": ["name", "age", "tags", "code"],
    "additionalProperties": False,
}
MOST = 400


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Tokenizer:
    return Tokenizer.load(model_dir)


@pytest.fixture
def compiler(tokenizer: Tokenizer) -> Iterator[Grammars]:
    made = Grammars(lambda: tokenizer, tokenizer.stop_ids)
    yield made
    made.close()


def _text(compiler: Grammars, tokenizer: Tokenizer, grammar: Grammar, seed: int, drafts: int = 0) -> str:
    """What a model says under ``grammar`` to which all tokens are equal, also those that the tokenizer lacks."""
    one, size = Sampler(), tokenizer.vocab_size + 7
    params = SamplingParams(grammar=grammar)
    one.add("a", params, seed, (), tokenizer.stop_ids, compiler.start(grammar).result())
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = []
    while len(found) < MOST:
        guesses = torch.randint(tokenizer.vocab_size, (drafts,), generator=generator).tolist()
        got = one.verify([("a", guesses)], torch.zeros(1 + drafts, size))[0]
        assert isinstance(got, Sampled), got
        found += got.tokens
        if found[-1] in tokenizer.stop_ids:
            return tokenizer.decode(found[:-1])
    raise AssertionError(f"no end after {MOST} tokens: {tokenizer.decode(found)}")


@pytest.mark.parametrize("drafts", [0, 3])
def test_what_comes_is_valid_for_the_schema(compiler: Grammars, tokenizer: Tokenizer, drafts: int) -> None:
    grammar = Grammar("json_schema", json.dumps(SCHEMA))
    for seed in range(4):
        jsonschema.validate(json.loads(_text(compiler, tokenizer, grammar, seed, drafts)), SCHEMA)


def test_choices_regexes_and_lark_grammars(compiler: Grammars, tokenizer: Tokenizer) -> None:
    choices = ["yes", "no", 'a "quoted"\nline', "漢字"]
    for seed in range(4):
        assert _text(compiler, tokenizer, Grammar("choice", json.dumps(choices)), seed) in choices
        assert re.fullmatch(
            "[a-f]{4}-[0-9]+!", _text(compiler, tokenizer, Grammar("regex", "[a-f]{4}-[0-9]{1,9}!"), seed)
        )
        assert _text(compiler, tokenizer, Grammar("lark", 'start: "x" ("y" | "z")'), seed) in ("xy", "xz")


def test_any_json_object_begins_as_one(compiler: Grammars, tokenizer: Tokenizer) -> None:
    matcher = compiler.start(Grammar("json_object")).result()
    allowed = {tokenizer.decode([int(token)]) for token in np.flatnonzero(masks([(matcher, ())], 320)[0])}
    assert "{" in allowed and all(re.fullmatch(r'\{\s*["}]?\s*', text) for text in allowed)


def test_masks_of_several_answers_and_their_drafts(compiler: Grammars, tokenizer: Tokenizer) -> None:
    first = compiler.start(Grammar("regex", "ab?c")).result()
    second = compiler.start(Grammar("regex", "ab?c")).result()
    a, b, x = (tokenizer.encode(text)[0] for text in "abx")
    second.take([a])
    rows = masks([(first, (a, x, b)), (second, ()), (first.copy(), (a,))], tokenizer.vocab_size + 5)
    texts = [{tokenizer.decode([int(token)]) for token in np.flatnonzero(row)} for row in rows]
    assert texts[0] == texts[5] and "a" in texts[0] and "b" not in texts[0]
    assert texts[1] == texts[4] == texts[6] and "b" in texts[1] and "a" not in texts[1]
    assert texts[2] == texts[3] == set()  # after what is not allowed, nothing is
    assert rows.shape == (7, tokenizer.vocab_size + 5) and not rows[:, -5:].any()


WRONG = [
    ("json_schema", '{"type": "object"', "not JSON"),
    ("json_schema", "[1]", "expected an object"),
    ("json_schema", '{"properties": {"a": {"items": {"type": "strin"}}}}', r"`?\$\.properties\.a\.items.*strin"),
    ("json_schema", '{"anyOf": [{"type": "null"}, {"type": "string", "pattern": "("}]}', r"\$\.anyOf\[1\].*unclosed"),
    ("json_schema", '{"$defs": {"x": {"type": 3}}, "properties": {"a": {"$ref": "#/$defs/x"}}}', r"\$\.\$defs\.x"),
    ("json_schema", '{"$ref": "#/nowhere"}', "nowhere"),
    ("choice", "[]", "at least one"),
    ("choice", '["a", ""]', "empty"),
    ("choice", '"a"', "list"),
    ("regex", "a(", "unclosed group"),
    ("lark", "start: nothing", "nothing"),
]


@pytest.mark.parametrize(("kind", "text", "found"), WRONG)
def test_what_is_wrong_with_a_grammar_is_said(compiler: Grammars, kind: Any, text: str, found: str) -> None:
    with pytest.raises(UsageError, match=found) as caught:
        compiler.start(Grammar(kind, text)).result()
    assert caught.value.param == "grammar" and kind.replace("_", " ") in caught.value.message


def test_compiled_grammars_are_kept_within_bounds(
    tokenizer: Tokenizer, compiler: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    build = grammars._built
    monkeypatch.setattr(grammars, "_built", lambda known, text: compiled.append(text) or build(known, text))
    monkeypatch.setattr(grammars, "MAX_COMPILED", 3)
    monkeypatch.setattr(grammars, "MAX_COMPILED_CHARS", 60)

    def count(text: str) -> int:
        compiled.clear()
        compiler.start(Grammar("regex", text)).result()
        return len(compiled)

    assert [count(text) for text in ("a", "b", "c", "a", "b", "c")] == [1, 1, 1, 0, 0, 0]
    assert [count(text) for text in ("a", "d", "a", "c", "b")] == [0, 1, 0, 0, 1]  # b was used longest ago
    assert count("x{9}" * 15) == 1
    assert count("b") == 1  # the long one left room for nothing else


def test_two_answers_of_one_grammar_go_their_own_ways(compiler: Grammars, tokenizer: Tokenizer) -> None:
    texts = {_text(compiler, tokenizer, Grammar("regex", "[a-z]{8}"), seed) for seed in range(5)}
    assert len(texts) == 5


def test_an_answer_that_left_its_grammar_fails_alone(compiler: Grammars, tokenizer: Tokenizer) -> None:
    grammar, one = Grammar("regex", "ab"), Sampler()
    matchers = [compiler.start(grammar).result() for _ in range(2)]
    for id, matcher in zip("xy", matchers, strict=True):
        one.add(id, SamplingParams(grammar=grammar), 0, (), tokenizer.stop_ids, matcher)
    matchers[0].take(tokenizer.encode("q"))
    found = one.verify([("x", ()), ("y", ())], torch.zeros(2, tokenizer.vocab_size))
    assert isinstance(found[0], EngineError) and "grammar" in found[0].message
    assert isinstance(found[1], Sampled)


@pytest.mark.parametrize("bad", range(4))
def test_drafts_of_an_answer_with_a_grammar_may_have_a_row_that_is_not_numbers(
    compiler: Grammars, tokenizer: Tokenizer, bad: int
) -> None:
    """What was chosen before that row stands; the other request goes on."""
    grammar, one = Grammar("regex", "abcd"), Sampler()
    for id in "xy":
        one.add(id, SamplingParams(grammar=grammar), 0, (), tokenizer.stop_ids, compiler.start(grammar).result())
    drafts = tuple(tokenizer.encode(letter)[0] for letter in "abc")
    logits_LV = torch.full((6, tokenizer.vocab_size), -50.0)
    for row, letter in enumerate("abcdab"):
        logits_LV[row, tokenizer.encode(letter)[0]] = 50.0
    logits_LV[bad, 3] = math.nan
    failed, other = one.verify([("x", drafts), ("y", drafts[:1])], logits_LV)
    assert isinstance(failed, EngineError) and "not numbers" in failed.message
    assert isinstance(other, Sampled) and other.tokens == drafts[:2]


@pytest.mark.parametrize("extra", [{"ignore_eos": True}, {"min_tokens": 2}], ids=str)
def test_what_contradicts_a_grammar_is_refused(extra: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="grammar"):
        SamplingParams(grammar=Grammar("json_object"), **extra)


def test_a_grammar_that_takes_long_holds_up_its_own_tenant_alone(
    compiler: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, compile = threading.Event(), Grammars._compile

    def slow(self: Grammars, grammar: Grammar) -> Matcher:
        assert grammar.text != "slow" or release.wait(20)
        return compile(self, grammar)

    monkeypatch.setattr(Grammars, "_compile", slow)
    try:
        held = [compiler.start(Grammar("regex", text), "a") for text in ("slow", "b", "c")]
        assert compiler.start(Grammar("regex", "d"), "b").result(10)
        assert held[1].cancel() and not any(future.done() for future in (held[0], held[2]))
        compiler.start(Grammar("regex", "slow"), "c")
        began_s = time.monotonic()
        compiler.close()  # which waits for nobody
        assert time.monotonic() - began_s < 1
    finally:
        release.set()
    assert held[0].result(10)


def test_tenants_do_not_find_each_others_grammars(compiler: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    build = grammars._built
    monkeypatch.setattr(grammars, "_built", lambda known, text: compiled.append(text) or build(known, text))
    for tenant, count in (("a", 1), ("a", 1), ("b", 2), ("a", 2), ("b", 2)):
        compiler.start(Grammar("regex", "x"), tenant).result()
        assert len(compiled) == count
