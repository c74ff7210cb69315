"""Mixtures, chats and adapters through the whole loop."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llmos.errors import ConflictError, DataError, UsageError
from llmos.models import weights
from llmos.parallel.mesh import RankMesh
from llmos.parallel.model import Layout, SpreadModel
from llmos.parallel.stage import Numerics
from llmos.parallel.world import World
from llmos.train import checkpoint, shards
from llmos.train.__main__ import _export
from llmos.train.batch import Batch
from llmos.train.loop import train
from llmos.train.loss import cross_entropy_sum
from llmos.train.training import Training
from tests.unit.models.small import SMALL, make


@pytest.fixture
def mixed(tmp_path: Path) -> dict[str, Any]:
    """``data`` of two sources, of text and of JSON lines."""
    (tmp_path / "a.txt").write_text("".join(f"line {n} of a text, {n * n}\n" for n in range(200)))
    lines = (json.dumps({"text": f"document {n} says {n * 7} and no more"}) for n in range(90))
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    sources = [{"path": str(tmp_path / "a.txt")}, {"path": str(tmp_path / "b.jsonl"), "weight": 2.0}]
    return {"sources": sources, "vocab_size": 280, "validation_fraction": 0.1, "log_samples": True}


@pytest.fixture
def chats(tmp_path: Path) -> dict[str, Any]:
    lines = []
    for n in range(40):
        asked, said = (
            {"role": "user", "content": f"What is {n} and {n}?"},
            {"role": "assistant", "content": f"{2 * n}."},
        )
        lines.append(json.dumps({"messages": [asked, said, {"role": "user", "content": "Thanks"}, said]}))
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    return {"path": str(tmp_path / "chats.jsonl"), "vocab_size": 300, "validation_fraction": 0.1}


@pytest.mark.parametrize("mask", ["none", "documents"])
def test_an_interrupted_mixture_goes_on_as_if_it_had_not_been(another: Any, mixed: dict[str, Any], mask: str) -> None:
    straight, halves = another("straight"), another("halves")
    changes = {"data": mixed | {"packing": {"mask": mask}}}
    straight.train(**changes)
    with pytest.MonkeyPatch.context() as patch:
        advance = Training.advance
        patch.setattr(Training, "advance", lambda self, stop=False: advance(self, stop or self.step == 4))
        assert halves.train(**changes).step == 5
    halves.train(attempt=2, **changes)
    assert halves.losses(1) + halves.losses(2) == straight.losses()
    assert halves.rows(2)[-1]["bits_per_byte"] == straight.rows()[-1]["bits_per_byte"]
    assert halves.samples(1, 0) + halves.samples(2, 0) == straight.samples(1, 0)
    ids = [id for step in straight.samples(1, 0) for id in step]
    assert len(set(ids)) == len(ids) == 48 and {id[0] for id in ids} == {"0", "1"}
    assert all(0 <= row["data_wait_s"] < 5 for row in straight.rows())


def test_other_weights_or_another_mask_do_not_continue_a_checkpoint(trainer: Any, mixed: dict[str, Any]) -> None:
    trainer.train(data=mixed)
    (trainer.layout.job("tiny").export).rename(trainer.layout.root / "export")
    with pytest.raises(ConflictError, match="`masks_documents` was False, is now True"):
        trainer.train(attempt=2, data=mixed | {"packing": {"mask": "documents"}})
    mixed["sources"][1]["weight"] = 3.0
    with pytest.raises(ConflictError, match=r"`weights` was \[1.0, 2.0\], is now \[1.0, 3.0\]"):
        trainer.train(attempt=3, data=mixed)


def test_packed_documents_have_the_loss_and_the_gradients_that_they_have_alone() -> None:
    rows = torch.randint(0, SMALL.vocab_size, (2, 61), generator=torch.Generator().manual_seed(0))
    rows[0, 20:30] = ~rows[0, 20:30]  # read, not to be predicted
    begins = torch.zeros(2, 60, dtype=torch.int64)
    begins[0, 17:], begins[1, 40:] = 17, 40
    packed, packed_gradients = loss_and_gradients([Batch.of(rows, begins)])
    parts = [rows[:1, :18], rows[:1, 17:], rows[1:, :41], rows[1:, 40:]]
    alone, gradients = loss_and_gradients([Batch.of(part) for part in parts])
    assert packed == pytest.approx(alone, rel=1e-5)
    for ours, expected in zip(packed_gradients, gradients, strict=True):
        assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()


def loss_and_gradients(batches: list[Batch]) -> tuple[float, list[Tensor]]:
    model = SpreadModel(make(), RankMesh(World()), Layout(rows=1, share=2, length=60), cross_entropy_sum, Numerics())
    losses = [model.passes.accumulate(b.tokens_BT, b.targets_BT, b.documents_BT) for b in batches]
    gradients = [parameter.grad for parameter in model.parameters.values()]
    return float(sum(losses)), [gradient for gradient in gradients if gradient is not None]


def test_tuning_on_chats_learns_answers_only(another: Any, chats: dict[str, Any]) -> None:
    whole, parts = another("whole"), another("parts")
    changes = {"objective": "sft", "data": chats, "sequence_length": 96}
    result = whole.train(steps=30, **changes)
    losses = whole.losses()
    assert losses[0] == pytest.approx(5.7, abs=0.5)  # log(300): the mean over answers, however many tokens those are
    assert losses[-1] < losses[0] - 1
    assert 0 < result.metrics["bits_per_byte"] < result.metrics["unigram_bits"] * 2
    parts.train(steps=3, micro_batch_size=1, **changes)
    assert parts.losses() == pytest.approx(losses[:3], abs=2e-5)


def test_adapters_are_all_that_is_trained_and_saved(trainer: Any, chats: dict[str, Any], tmp_path: Path) -> None:
    trainer.train(steps=2, objective="sft", data=chats, sequence_length=96)
    base = trainer.layout.model("tiny", 1)
    base.parent.mkdir(parents=True)
    trainer.layout.job("tiny").export.rename(base)
    trainer.layout.job("tiny").root.rename(tmp_path / "first")
    lora = {"rank": 4, "targets": ["q_proj", "up_proj"], "save_adapter": True}
    changes = {"objective": "sft", "data": chats, "sequence_length": 96, "lora": lora, "model": {"ref": "tiny@1"}}
    changes["optimizer"] = {"warmup_steps": 1, "learning_rate": 0.03}
    run = dataclasses.replace(trainer.run(**changes), base_model=base)
    run.attempt.root.mkdir(parents=True)
    train(run, World())
    losses = trainer.losses()
    assert losses[-1] < losses[0] - 0.05
    newest = run.job_dirs.checkpoints / "step-00000012"
    saved = {name: torch.empty_like(form, device="cpu") for name, form in shards.describe(newest).items()}
    shards.read(newest, saved)
    saved = {name: tensor for name, tensor in saved.items() if checkpoint.is_parameter(name)}
    assert {name.rpartition(".")[2] for name in saved} == {"lora_A", "lora_B"} and len(saved) == 2 * 2 * 2
    before, after = weights.load_model(base), weights.load_model(run.job_dirs.export)
    changed = {
        name.split(".")[-2]
        for name, parameter in after.named_parameters()
        if not torch.equal(parameter, before.get_parameter(name))
    }
    assert changed == {"q_proj", "up_proj"}
    name = "model.layers.1.mlp.up_proj"
    product = saved[f"{name}.lora_B"] @ saved[f"{name}.lora_A"] * 32 / 4
    assert torch.allclose(after.get_parameter(f"{name}.weight"), before.get_parameter(f"{name}.weight") + product)
    adapter = load_file(run.job_dirs.adapter / "adapter_model.safetensors")
    assert torch.equal(adapter[f"base_model.model.{name}.lora_A.weight"], saved[f"{name}.lora_A"])
    weights_at = _export(tmp_path / "exported", run.job, trainer.layout, None)
    exported = weights.load_model(weights_at)
    assert all(torch.equal(p, exported.get_parameter(name)) for name, p in after.named_parameters())
    resumed = dataclasses.replace(trainer.run(attempt=2, **changes), base_model=base)
    run.job_dirs.export.rename(tmp_path / "export")
    resumed.attempt.root.mkdir(parents=True)
    train(resumed, World())
    again = weights.load_model(run.job_dirs.export)
    assert all(torch.equal(p, again.get_parameter(name)) for name, p in after.named_parameters())


def test_tokens_beyond_the_models_vocabulary(trainer: Any, tmp_path: Path) -> None:
    trainer.train(steps=1)
    base = trainer.layout.job("tiny").export.rename(tmp_path / "base")
    trainer.layout.job("tiny").root.rename(tmp_path / "first")
    config = json.loads((base / "config.json").read_text()) | {"vocab_size": 270}
    (base / "config.json").write_text(json.dumps(config))
    tensors = load_file(base / "model.safetensors")
    model = weights.Transformer(weights.ModelConfig.load(base))
    weights.save_model(model, base)
    assert tensors.keys() == dict(model.named_parameters()).keys()
    run = dataclasses.replace(trainer.run(model={"ref": "tiny@1"}), base_model=base)
    run.attempt.root.mkdir(parents=True)
    with pytest.raises(DataError, match="has tokens up to 279: the model's vocabulary is 270"):
        train(run, World())


def test_ray_is_asked_for_where_there_is_none(trainer: Any) -> None:
    with pytest.raises(UsageError, match="`data.tokenize: ray` needs a Ray cluster"):
        trainer.train(data=trainer.data | {"tokenize": "ray"})
