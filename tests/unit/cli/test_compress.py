"""What ``llmos compress`` prints. What it does: tests/unit/compress."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmos import compression
from tests.unit.cli.conftest import Run

FOUND: dict[str, Any] = {
    **{"compressed_from": "coder@1", "compressed_from_digest": "0" * 64, "bits": 4, "group_size": 64, "output_bits": 8},
    **{"relative_error": 0.0912, "worst_relative_error": 0.1204, "worst_matrix": "model.layers.0.mlp.up_proj"},
    **{"original_bytes": 269_000_000, "size_bytes": 111_000_000, "model": "coder-int4@1"},
}


def test_people_get_a_table_programs_json(llmos: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def compress(model: str, bits: int, connect: object, progress: Any, **more: Any) -> dict[str, Any]:
        asked.append((model, bits, more))
        for done in range(1, 31):
            progress(done, 30)
        return FOUND

    monkeypatch.setattr(compression, "compress", compress)
    told = llmos("compress", "coder", "--int4", "--group-size", "64")
    assert told.code == 0 and asked == [("coder", 4, {"group": 64, "keep_output": False, "out": None, "name": None})]
    for line in (
        "model      coder-int4@1",
        "weights    int4 in groups of 64",
        "lm_head    int8 by channel",
        "size       111.0 MB, 41% of 269.0 MB",
        "error      0.0912 of the weights (root mean square); at most 0.1204 in model.layers.0.mlp.up_proj",
    ):
        assert line in told.out
    assert told.err.splitlines() == [f"quantized {done} of 30 matrices" for done in range(3, 31, 3)]
    assert json.loads(llmos("compress", "coder", "--int8", "--keep-output", "--out", "d", "-o", "json").out) == FOUND
    assert asked[-1] == ("coder", 8, {"group": None, "keep_output": True, "out": Path("d"), "name": None})


def test_what_it_refuses(llmos: Run) -> None:
    for options in ((), ("--int8", "--int4")):
        wrong = llmos("compress", "coder", *options)
        assert wrong.code == 2 and "expected either `--int8` or `--int4`" in wrong.err
    missing = llmos("compress", "coder", "--int8")
    assert missing.code == 1 and "no model `coder`" in missing.err
