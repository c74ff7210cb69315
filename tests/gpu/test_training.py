"""Training on a card: what it computes, what it holds, and what it leaves behind."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from llmos.core.capacity import Mesh, ModelShape, training_memory
from llmos.core.capacity import Training as Planned
from llmos.models import ModelConfig, Transformer
from llmos.parallel.gradients import Gradients
from llmos.parallel.mesh import RankMesh
from llmos.parallel.model import Layout, SpreadModel
from llmos.parallel.stage import Numerics
from llmos.parallel.world import World
from llmos.spec import PRESETS
from llmos.spec import Optimizer as OptimizerSpec
from llmos.train.batch import Batch
from llmos.train.loop import train
from llmos.train.loss import cross_entropy_sum
from llmos.train.optimizer import Optimizer

VOCABULARY = 4096


def _train(trainer: Any, world: World | None = None, attempt: int = 1, **changes: Any) -> None:
    """On the card, unless ``world`` is another."""
    run = trainer.run(attempt, **changes)
    run.attempt.root.mkdir(parents=True)
    train(run, world or World.current())


def test_losses_are_those_of_the_cpu(another: Any) -> None:
    card, cpu = another("card"), another("cpu")
    _train(card)
    _train(cpu, World())
    assert card.losses() == pytest.approx(cpu.losses(), rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"precision": "bf16_weights"},
        {"precision": "fp16"},
        {"precision": "bf16", "activation_checkpointing": "full"},
        {"precision": "bf16", "activation_checkpointing": "selective"},
        {"precision": "bf16", "compile": True},
    ],
    ids=str,
)
def test_half_precision_stays_close(another: Any, changes: dict[str, Any]) -> None:
    exact, rounded = another("exact"), another("rounded")
    _train(exact)
    _train(rounded, **changes)
    assert rounded.losses() == pytest.approx(exact.losses(), rel=1e-2)
    assert all(math.isfinite(row["grad_norm"]) for row in rounded.rows() if "skipped" not in row)


def test_a_checkpoint_continues_to_the_bit(another: Any) -> None:
    straight, halves = another("straight"), another("halves")
    _train(straight)
    _train(halves)
    dirs = halves.layout.job("tiny")
    shutil.rmtree(dirs.checkpoints / "step-00000012")
    shutil.rmtree(dirs.export)
    _train(halves, attempt=2)
    assert halves.losses(2) == straight.losses()[6:]
    ours, theirs = (load_file(t.layout.job("tiny").export / "model.safetensors") for t in (halves, straight))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_of_the_card_continues_on_the_cpu(another: Any) -> None:
    trainer = another("one")
    _train(trainer)
    dirs = trainer.layout.job("tiny")
    shutil.rmtree(dirs.checkpoints / "step-00000012")
    shutil.rmtree(dirs.export)
    _train(trainer, World(), attempt=2)
    assert trainer.losses(2) == pytest.approx(trainer.losses(1)[6:], rel=1e-4)


def _steps(precision: str, rows: int, tokens: int, recompute: Any = "none") -> int:
    """The most bytes of tensors during the second of two steps of preset `tiny`."""
    model = Transformer(ModelConfig.from_preset(PRESETS["tiny"], VOCABULARY, None, None)).train()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    layout, numerics = Layout(rows=rows, share=rows, length=tokens), Numerics(dtype, recompute=recompute)
    spread = SpreadModel(model, RankMesh(World.current()), layout, cross_entropy_sum, numerics)
    optimizer = Optimizer(spread.parameters, OptimizerSpec(), spread.mesh.line("dp"))
    gradients = Gradients(spread.parameters, spread.mesh, riders=2)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        gradients.zero()
        batch = Batch.of(torch.randint(VOCABULARY, (rows, tokens + 1), device="cuda"))
        spread.passes.accumulate(batch.tokens_BT, batch.targets_BT)
        optimizer.step(1e-3, gradients.local())
    return torch.cuda.max_memory_allocated()


@pytest.mark.parametrize(
    ("precision", "rows", "recompute"),
    [("fp32", 16, "none"), ("bf16", 32, "none"), ("bf16", 32, "full")],
)
def test_memory_is_what_was_predicted(precision: str, rows: int, recompute: str) -> None:
    before = torch.cuda.memory_allocated()
    peak = _steps(precision, rows, 1024, recompute) - before
    planned = Planned(rows, rows, 1024, precision=precision, checkpointing=recompute)
    predicted = training_memory(ModelShape.of(PRESETS["tiny"], vocab_size=VOCABULARY), planned, Mesh())
    assert predicted.total == pytest.approx(peak, rel=0.1)


def test_attention_keeps_no_probabilities() -> None:
    """Flash attention: twice the sequence takes twice the memory, not four times."""
    short, long = _steps("bf16", 4, 1024), _steps("bf16", 2, 2048)
    assert long == pytest.approx(short, rel=0.05)


def test_adamw_is_fused() -> None:
    weight = torch.nn.Parameter(torch.zeros(8, 8, device="cuda"))
    optimizer = Optimizer({"weight": weight}, OptimizerSpec(), RankMesh(World.current()).line("dp"))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        optimizer.step(1e-2, [torch.ones(8, 8, device="cuda")])
        torch.cuda.synchronize()
    assert any("FusedAdam" in event.key or "fused_adam" in event.key for event in profile.key_averages())
    assert torch.allclose(weight, torch.full_like(weight, -1e-2), rtol=1e-3)


def test_one_rank_joins_a_group_of_nccl(another: Any, tmp_path: Path) -> None:
    alone, joined = another("alone"), another("joined")
    _train(alone)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=torch.device("cuda", 0))
    try:
        world = World.current()
        assert world.device == torch.device("cuda", 0)
        assert world.total([1.5]) == [1.5]
        _train(joined, world)
    finally:
        dist.destroy_process_group()
    assert joined.losses() == alone.losses()
