"""Bare Ray Train as its documentation has it: ``TorchTrainer`` with retries and an elastic number of workers.

    RAY_ADDRESS=… python -m benchmarks.ray_train_peer DIRECTORY MIN MAX

A small model trains with DistributedDataParallel until it is ended. Rank 0 writes a line for each step to
``DIRECTORY/steps.jsonl``: step, time, number of workers. Every ``SAVE_EVERY`` steps a checkpoint is reported.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model
from torch import nn

SAVE_EVERY = 50
MONITOR_INTERVAL_S = 5.0
"""How often Ray Train looks for more workers; its default is 60 s. What is measured begins when it has found some."""


def main() -> None:
    """Train on MIN to MAX workers."""
    directory, fewest, most = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    ray.init(log_to_driver=False)
    scaling: dict[str, Any] = {"num_workers": most}
    if fewest < most:
        scaling = {"num_workers": (fewest, most), "elastic_resize_monitor_interval_s": MONITOR_INTERVAL_S}
    TorchTrainer(
        _train,
        train_loop_config={"steps": str(directory / "steps.jsonl")},
        scaling_config=ScalingConfig(resources_per_worker={"CPU": 1}, **scaling),
        run_config=RunConfig(
            name="peer", storage_path=str(directory / "storage"), failure_config=FailureConfig(max_failures=10)
        ),
    ).fit()


def _train(config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    context, steps = ray.train.get_context(), Path(config["steps"])
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    begin = 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as path:
            saved = torch.load(os.path.join(path, "state.pt"), weights_only=True)
        model.load_state_dict(saved["model"])
        begin = saved["step"]
    model = prepare_model(model)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(begin + 1, 10**9):
        loss = (model(torch.randn(8, 64)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(0.005)
        if context.get_world_rank() == 0:
            with steps.open("a") as file:
                row = {"step": step, "time_s": time.time(), "workers": context.get_world_size()}
                file.write(json.dumps(row) + "\n")
        if step % SAVE_EVERY == 0:
            _report(model, step, context.get_world_rank() == 0)


def _report(model: nn.Module, step: int, first: bool) -> None:
    if not first:
        ray.train.report({"step": step})
        return
    whole = getattr(model, "module", model)
    with tempfile.TemporaryDirectory() as directory:
        torch.save({"model": whole.state_dict(), "step": step}, os.path.join(directory, "state.pt"))
        ray.train.report({"step": step}, checkpoint=Checkpoint.from_directory(directory))


if __name__ == "__main__":
    main()
