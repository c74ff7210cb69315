"""What runs on cards, as far as it can be tried without one: the static step of graphs, and the ragged arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmos.infer import varlen_attention
from llmos.infer.decode_graphs import Compute, DecodeGraphs
from llmos.infer.load import load_shard
from llmos.infer.step import Step
from llmos.infer.torch_runner import TorchRunner
from llmos.infer.varlen_attention import VarlenPages
from llmos.models import weights
from tests.unit.infer.steps import BLOCKS, Script, computed, expected, worst
from tests.unit.models.small import make

FP32_TOLERANCE = 1e-4
FAMILIES = pytest.mark.parametrize("changes", [{}, {"architecture": "mistral", "sliding_window": 20}], ids=str)


@pytest.fixture
def prepared(tmp_path: Path, changes: dict[str, Any]) -> tuple[TorchRunner, list[Tensor], Script]:
    model, script = make(**changes), Script()
    weights.save_model(model, tmp_path)
    return TorchRunner(load_shard(tmp_path, torch.float32), BLOCKS), expected(model, script), script


@FAMILIES
def test_decoding_as_a_graph_would(prepared: tuple[TorchRunner, list[Tensor], Script]) -> None:
    runner, theirs, script = prepared
    made: list[Compute] = []

    def eager(compute: Compute) -> Compute:
        made.append(compute)
        compute()  # capturing computes, too
        return compute

    graphs, ours, used = DecodeGraphs(runner, eager), [], 0
    runner.pages._all_LKBTE[:, :, :-2] = torch.nan
    for step, _ in script.steps():
        logits_LV = graphs.run(step)
        used += logits_LV is not None
        ours.append(runner.run(step) if logits_LV is None else logits_LV.clone())
    assert worst(ours, theirs) < FP32_TOLERANCE
    assert used == 2 and len(made) == 1  # the steps of one token each, by one graph
    firsts = step.tokens_N[:3], step.positions_N[:3], step.starts_S[:4], step.blocks_SM[:3], step.logits_at_L[:3]
    padded_LV = graphs.run(Step(*firsts))
    assert padded_LV is not None and worst([padded_LV], [theirs[-1][:3]]) < FP32_TOLERANCE and len(made) == 1
    assert not runner.pages._all_LKBTE[:, :, runner.pages.nowhere].any()


@FAMILIES
def test_ragged_attention(prepared: tuple[TorchRunner, list[Tensor], Script], monkeypatch: pytest.MonkeyPatch) -> None:
    runner, theirs, script = prepared
    config = runner.config
    sizes = (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim)
    runner.pages = VarlenPages(*sizes, BLOCKS, torch.float32, torch.device("cpu"))
    monkeypatch.setattr(varlen_attention, "varlen_attn", _varlen)
    assert worst(computed(runner, script), theirs) < FP32_TOLERANCE


def _varlen(
    q_NHE: Tensor,
    k_TKE: Tensor,
    v_TKE: Tensor,
    q_ends: Tensor,
    k_ends: Tensor,
    most_q: int,
    most_k: int,
    *,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """As torch documents it: the last query sees the last key."""
    assert q_ends.dtype == k_ends.dtype == torch.int32 and enable_gqa and window_size[1] == 0
    assert (most_q, most_k) == (q_ends.diff().max(), k_ends.diff().max())
    parts = []
    for at in range(len(q_ends) - 1):
        q_HnE = q_NHE[q_ends[at] : q_ends[at + 1]].transpose(0, 1)
        k, v = (x[k_ends[at] : k_ends[at + 1]].transpose(0, 1) for x in (k_TKE, v_TKE))
        before = torch.arange(k.shape[1] - q_HnE.shape[1], k.shape[1])[:, None] - torch.arange(k.shape[1])
        mask = (before >= 0) & ((before <= window_size[0]) | torch.tensor(window_size[0] < 0))
        parts.append(F.scaled_dot_product_attention(q_HnE, k, v, attn_mask=mask, enable_gqa=True).transpose(0, 1))
    return torch.cat(parts)
