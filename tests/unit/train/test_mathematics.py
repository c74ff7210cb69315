"""What the loop computes is what the formulas say: plain PyTorch on the same data and seed, and sums over shards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmos.models import Transformer
from llmos.parallel.gradients import Gradients
from llmos.parallel.mesh import RankMesh
from llmos.parallel.world import World
from llmos.train import start
from llmos.train.batch import Batch
from llmos.train.feed import Feed
from llmos.train.schedule import learning_rate
from llmos.train.step import spread


def _plain_loop(trainer: Any, steps: int) -> list[float]:
    """Nothing but torch, the model and the data: the losses of ``steps`` steps of AdamW."""
    run = trainer.run()
    job = run.job
    corpus = start.prepare_corpus(job, run.data_dir, None, World(), lambda *_: None)
    model = start.build_model(job, corpus, None)
    feed = Feed(job, corpus, range(job.batch_size), torch.device("cpu"), lambda *_: None)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    gains = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    losses = []
    for step in range(steps):
        batch, _ = feed.take(step)
        logits = model(batch.tokens_BT)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, job.steps, job.optimizer)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_a_plain_pytorch_loop_has_the_same_losses(trainer: Any) -> None:
    trainer.train()
    assert trainer.losses() == pytest.approx(_plain_loop(trainer, 12), rel=1e-5)


def _gradients(trainer: Any, samples: Tensor, scale: float, micro_batch: int) -> tuple[float, list[Tensor]]:
    """Loss and gradients of ``scale`` × the summed loss of ``samples``, from the same weights each time."""
    job = trainer.job(batch_size=6, micro_batch_size=micro_batch)
    torch.manual_seed(3)
    model = spread(job, Transformer(start.shape(job)), RankMesh(World()))
    gradients = Gradients(model.parameters, model.mesh, riders=1)
    gradients.zero()
    model.set_scale(scale)
    batch = Batch.of(samples)
    loss = model.passes.accumulate(batch.tokens_BT, batch.targets_BT)
    (total,), _ = gradients.sum([loss])
    return total, gradients.local()


def test_the_gradient_is_the_sum_of_the_shards_gradients(trainer: Any) -> None:
    """∇J = Σᵢ ∇Jᵢ: each shard's loss is a sum over its tokens that count, times one factor that all share.

    The mean over tokens is the factor 1 / count of all shards; means over each shard would weigh tokens unequally.
    """
    torch.manual_seed(0)
    samples = torch.randint(280, (6, 33))
    samples[1, 9:] = -1  # shards with unequally many tokens that count
    samples[4, 20:] = -1
    count = int((samples[:, 1:] >= 0).sum())
    loss, whole = _gradients(trainer, samples, 1 / count, micro_batch=6)
    shards = [_gradients(trainer, shard, 1 / count, micro_batch=1) for shard in samples.split([1, 2, 3])]
    assert sum(loss for loss, _ in shards) == pytest.approx(loss, rel=1e-6)
    for ours, *parts in zip(whole, *(gradients for _, gradients in shards), strict=True):
        assert torch.allclose(ours, torch.stack(parts).sum(0), atol=1e-6)
    mean = F.cross_entropy(
        torch.cat([_logits(trainer, row) for row in samples]), samples[:, 1:].flatten(), ignore_index=-1
    )
    assert loss == pytest.approx(float(mean), rel=1e-5)


def _logits(trainer: Any, row: Tensor) -> Tensor:
    torch.manual_seed(3)
    model = Transformer(start.shape(trainer.job()))
    with torch.no_grad():
        return model(row[None, :-1].clamp(min=0))[0]
