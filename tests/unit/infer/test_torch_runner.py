"""The runner in plain torch computes what the model does, whatever the batch, the pages and the form of the weights."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmos.errors import OutOfMemoryError
from llmos.infer import memory
from llmos.infer.load import load_shard
from llmos.infer.step import BLOCK_TOKENS, Step
from llmos.infer.torch_runner import TorchRunner
from llmos.models import Transformer, weights
from llmos.models.quantization import Quantization
from llmos.models.rope_config import YarnScaling
from tests.unit.infer.quantized import INT4, linears, write_quantized
from tests.unit.infer.steps import BLOCKS, Script, computed, expected, worst
from tests.unit.models.small import make

Save = Callable[..., tuple[Transformer, Path]]
FP32_TOLERANCE, BF16_TOLERANCE = 1e-4, 0.2
"""Of logits up to 4 in size, after weights that are 8 times as large as a model's."""


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(**changes: Any) -> tuple[Transformer, Path]:
        model = make(**changes)
        weights.save_model(model, tmp_path)
        return model, tmp_path

    return write


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": False, "num_kv_heads": 8},
        {"num_heads": 3, "num_kv_heads": 1, "head_dim": 32},
        {"architecture": "qwen2", "attention_bias": True},
        {"architecture": "qwen3", "qk_norm": True},
        {"architecture": "mistral", "sliding_window": 20},
        {"rope_scaling": YarnScaling(factor=4.0, original_max_position=32)},
    ],
    ids=str,
)
def test_logits_are_those_of_the_model(save: Save, changes: dict[str, Any]) -> None:
    model, directory = save(**changes)
    runner = TorchRunner(load_shard(directory, torch.float32), BLOCKS)
    script = Script()
    assert worst(computed(runner, script), expected(model, script)) < FP32_TOLERANCE


def test_bf16_weights_are_multiplied_as_they_are(save: Save) -> None:
    model, directory = save()
    runner = TorchRunner(load_shard(directory, torch.bfloat16), BLOCKS, dtype=torch.bfloat16)
    script, rounded = Script(), copy.deepcopy(model)
    for parameter in rounded.parameters():
        if parameter.ndim == 2:
            parameter.data = parameter.data.bfloat16().float()
    native = "bfloat16" in str(runner.stats()["kernels"])
    assert worst(computed(runner, script), expected(rounded, script)) < (BF16_TOLERANCE if native else FP32_TOLERANCE)


@pytest.mark.parametrize(
    ("quantization", "dtype", "tolerance"),
    [
        (linears(8), torch.float32, FP32_TOLERANCE),
        (linears(8, packed=False), torch.bfloat16, BF16_TOLERANCE),
        (linears(8, 32), torch.float32, FP32_TOLERANCE),
        (linears(4, 16), torch.float32, FP32_TOLERANCE),
        (linears(4, 32), torch.bfloat16, BF16_TOLERANCE),
        (linears(4), torch.float32, FP32_TOLERANCE),
        (INT4, torch.float32, FP32_TOLERANCE),
        (INT4, torch.bfloat16, BF16_TOLERANCE),
    ],
    ids=str,
)
def test_quantized_weights(tmp_path: Path, quantization: Quantization, dtype: torch.dtype, tolerance: float) -> None:
    nearest = write_quantized(make(intermediate_size=128, tie_embeddings=False), tmp_path, quantization)
    runner = TorchRunner(load_shard(tmp_path, dtype), BLOCKS, dtype=dtype)
    script = Script()
    assert worst(computed(runner, script), expected(nearest, script)) < tolerance
    if dtype is torch.bfloat16:
        kernels = str(runner.stats()["kernels"])
        assert all(f"int{scheme.bits}" in kernels for scheme in quantization.schemes.values())


def test_dequantizing_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_quantized(make(intermediate_size=144), tmp_path, linears(4, 8))
    with caplog.at_level(logging.WARNING, "llmos.infer.packed"):
        TorchRunner(load_shard(tmp_path, torch.float32), 1)
    assert [record.getMessage() for record in caplog.records] == [
        "int4 in groups of 8 weights are computed as float32: there is no fast product for them on cpu"
    ]


def test_no_weight_is_there_twice(save: Save) -> None:
    _, directory = save(tie_embeddings=False)
    shard = load_shard(directory, torch.bfloat16)
    matrices = [shard.output, *(m for layer in shard.layers for m in (layer.qkv, layer.out, layer.gate_up, layer.down))]
    TorchRunner(shard, 1, dtype=torch.bfloat16)
    assert {matrix.weight.untyped_storage().nbytes() for matrix in matrices if matrix} == {0}


def test_a_sequence_never_sees_what_another_left(save: Save) -> None:
    model, directory = save()
    runner = TorchRunner(load_shard(directory, torch.float32), BLOCKS)
    runner.pages._all_LKBTE[:, :, :-2] = torch.nan  # as a broken sequence would leave its blocks
    script = Script()
    assert worst(computed(runner, script), expected(model, script)) < FP32_TOLERANCE


def _step(tokens: list[int], blocks: list[int], first: int = 0) -> Step:
    count = len(tokens)
    return Step(
        np.array(tokens, np.int32),
        np.arange(first, first + count, dtype=np.int32),
        np.array([0, count], np.int32),
        np.array([blocks], np.int32),
        np.array([count - 1], np.int32),
    )


def test_a_shared_prefix_is_read_where_it_lies(save: Save) -> None:
    model, directory = save()
    runner = TorchRunner(load_shard(directory, torch.float32), 4)
    prefix = list(range(BLOCK_TOKENS))
    runner.run(_step(prefix, [2]))
    ours = torch.cat([runner.run(_step([50, 51], [2, 0], 16)), runner.run(_step([60, 61, 62], [2, 3], 16))])
    with torch.no_grad():
        theirs = [model(torch.tensor([[*prefix, *rest]]))[0, -1] for rest in ([50, 51], [60, 61, 62])]
    assert worst([ours], [torch.stack(theirs)]) < FP32_TOLERANCE


def test_the_cache_takes_its_share_and_the_account_says_so(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    _, directory = save()
    block_bytes = 3 * 2 * 2 * 16 * BLOCK_TOKENS * 4
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**30)
    runner = TorchRunner(load_shard(directory, torch.float32), memory_bytes=100 * block_bytes + 5)
    account = runner.stats()["memory"]
    assert isinstance(account, dict)
    assert runner.blocks == account["blocks"] == 100 and account["cache_bytes"] == 100 * block_bytes
    assert account["weights_bytes"] == sum(p.nbytes for p in make().parameters() if p.ndim == 2)
    shared = TorchRunner(load_shard(directory, torch.float32))
    assert shared.account.cache_bytes == pytest.approx((2**30 - account["working_bytes"]) / 2, rel=1e-3)


def test_too_little_memory_says_what_would_fit(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    _, directory = save()
    block_bytes = 3 * 2 * 2 * 16 * BLOCK_TOKENS * 4
    with pytest.raises(OutOfMemoryError, match=r"5 blocks .* needs 16 .*\n.* context length of 80 would fit"):
        TorchRunner(load_shard(directory, torch.float32), memory_bytes=5 * block_bytes)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 20 * 2**20)
    with pytest.raises(OutOfMemoryError, match=r"9,999 blocks needs .* 20.0 MiB are free\n  [\d,]+ blocks"):
        TorchRunner(load_shard(directory, torch.float32), 9999)
