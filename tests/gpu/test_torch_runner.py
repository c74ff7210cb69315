"""The runner on a card: its logits are those of the CPU, as graphs and in ragged batches."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from llmos.infer.load import load_shard
from llmos.infer.torch_runner import TorchRunner
from llmos.models import weights
from tests.unit.infer.steps import BLOCKS, Script, computed, expected, worst
from tests.unit.models.small import make


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.3)], ids=str)
def test_logits_are_those_of_the_cpu(tmp_path: Path, window: int | None, dtype: torch.dtype, tolerance: float) -> None:
    family = "llama" if window is None else "mistral"
    model, script = make(architecture=family, sliding_window=window), Script()
    weights.save_model(model, tmp_path)
    runner = TorchRunner(load_shard(tmp_path, dtype, device="cuda"), BLOCKS, dtype=dtype, device="cuda")
    theirs = expected(copy.deepcopy(model).to(dtype).float(), script)
    for _ in range(2):  # the second time, graphs are replayed
        assert worst(computed(runner, script), theirs) < tolerance
