"""A loop of one's own, which llmos calls on every rank: it may end after any step, and goes on with other ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

if TYPE_CHECKING:
    from llmos.train.context import Context

ROWS = 64


def main(context: Context) -> None:
    """Learn to add, on as many ranks as there are, each with its share of every batch."""
    torch.manual_seed(0)
    model = nn.Linear(8, 1).to(context.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    saved = context.latest()
    if saved:
        saved.load(model, optimizer)
    for step in range(saved.step + 1 if saved else 1, context.steps + 1):
        rows = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(step))
        x = rows[context.rank :: context.size].to(context.device)
        loss = (model(x) - x.sum(1, keepdim=True)).square().sum() / ROWS
        optimizer.zero_grad()
        loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
        dist.all_reduce(total := loss.detach())
        optimizer.step()
        context.report(step, loss=total)
        if context.should_save():
            context.save(step, model, optimizer)
        if context.should_stop():
            return
