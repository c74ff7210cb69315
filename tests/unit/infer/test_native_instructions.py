"""The native step as other processors compile it: what they compute here, and what is only compiled here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from llmos.errors import EngineError
from llmos.infer.native import build as building
from llmos.infer.native import runner as running
from llmos.infer.native.bindings import Library
from tests.unit.infer.random_shard import change, logits_of, random_shard
from tests.unit.infer.test_native import LENGTHS, RAGGED, replayed, texts_of

EMULATED = Path(__file__).parent / "emulated_avx512.h"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def compiled(*changes: str, to: Path) -> Path:
    """The native step with some flags changed. Skips where there is no g++, or one that does not know them."""
    try:
        compiler = building.find_compiler()
    except EngineError as error:
        pytest.skip(f"no native step here: {error}")
    command = [compiler, *building.FLAGS, *changes, str(building.SOURCE), "-o", str(to)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "bad value" in done.stderr or "unknown target CPU" in done.stderr:
        pytest.skip(f"{compiler} does not know {changes}")
    assert done.returncode == 0, done.stderr
    return to


VARIANTS = {
    "AVX512-BF16": ("-w", "-include", str(EMULATED)),
    "AVX512": ("-w", "-DEMULATE_NO_BF16", "-include", str(EMULATED)),
    "128-bit vectors": ("-march=x86-64",),
}


@pytest.mark.parametrize(("instructions", "flags"), VARIANTS.items(), ids=VARIANTS.keys())
def test_other_processors_compute_the_same(
    instructions: str, flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Library(compiled(*flags, to=tmp_path / "step.so"))
    assert other.instructions == instructions
    monkeypatch.setattr(running, "native_step", lambda: other)
    texts = texts_of(*LENGTHS, 150)
    for config in (change(head_dim=64, num_heads=3, num_kv_heads=1, hidden_size=64), change(num_kv_heads=6)):
        for bits, bound in ((32, 1e-4), (16, 0.1), (8, 0.1), (4, 0.1)):
            shard = random_shard(config, bits, bias=True, norms=True)
            found = replayed(shard, texts, [{3: 150}, *RAGGED])
            worst = max(
                (logits - logits_of(shard, text)).abs().max() for text, logits in zip(texts, found, strict=True)
            )
            assert worst < bound, f"{bits} bits: {worst}"


@pytest.mark.parametrize("processor", ["sapphirerapids", "znver4", "skylake-avx512"])
def test_processors_that_are_not_here_are_compiled_for(processor: str, tmp_path: Path) -> None:
    compiled(f"-march={processor}", to=tmp_path / "step.so")
