"""What ``llmos eval`` prints. What it measures: tests/unit/train/test_measure.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmos import evaluation
from tests.unit.cli.conftest import Run

FOUND: dict[str, Any] = {
    **{"model": "coder@1", "data": ["a.txt"], "chats": False, "sequence_length": 256, "documents": 3},
    **{"tokens": 12345, "bytes": 40000, "loss": 2.0, "perplexity": 7.389, "bits_per_byte": 1.25, "gzip_bits": 2.5},
    **{"samples": [{"prompt": "def f(\n", "completion": "x):\n    return\x1b[2J x"}]},
}


def test_people_get_numbers_and_samples_programs_json(llmos: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def evaluate(*args: Any, **more: Any) -> dict[str, Any]:
        asked.append((args[:2], more))
        return FOUND

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    told = llmos("eval", "coder", "--data", "a.txt", "--data", "b.txt", "--prompt", "hi", "--sequence", "64")
    assert told.code == 0
    for line in (
        "loss           2.0000 nats per token",
        "perplexity     7.39",
        "bits per byte  1.2500   (gzip -9: 2.5000)",
    ):
        assert line in told.out
    assert "3 documents, 40.0 kB, 12,345 tokens, in rows of 256" in told.out
    assert "def f(\n  x):\n      return [2J x" in told.out
    assert asked[0][0] == ("coder", ["a.txt", "b.txt"]) and asked[0][1]["sequence"] == 64
    assert asked[0][1]["sampling"].prompts == ("hi",)
    assert json.loads(llmos("eval", "coder", "--data", "a.txt", "-o", "json").out) == FOUND


def test_what_it_refuses(llmos: Run) -> None:
    wrong = llmos("eval", "coder", "--data", "a.txt", "--format", "csv")
    assert wrong.code == 2 and "`--format csv`: expected one of auto, text, jsonl, parquet, chat" in wrong.err
    assert llmos("eval", "coder").code == 2
    missing = llmos("eval", "coder", "--data", "a.txt")
    assert missing.code == 1 and missing.err.startswith("error: no model `coder`: found none of that name")
