"""Jobs on different meshes: ranks are started once and train one job after the other."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from llmos.layout import Layout
from llmos.models import ModelConfig
from llmos.parallel import data
from llmos.parallel.world import World
from llmos.train.local import processes
from llmos.train.loop import Run, train

RANKS = int(os.environ.get("TEST_RANKS", "8"))
STEPS = 20
BATCH = 8
BUCKET_BYTES = 2**13
"""So small that the sums of gradients begin in the middle of backward passes, as they do with real models."""
SHAPE = {
    "vocab_size": 300,  # the tokenizer's size replaces it
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "max_position": 64,
}
SHAPES: dict[str, dict[str, Any]] = {
    "shallow": {"num_layers": 2},
    "tied": {"num_layers": 4},
    "untied": {"num_layers": 4, "tie_embeddings": False},
    "qwen2": {"num_layers": 2, "architecture": "qwen2", "attention_bias": True, "sliding_window": 7},
    "qwen3": {"num_layers": 2, "architecture": "qwen3", "qk_norm": True},
}

TrainerIn = Callable[[Path], Any]


def name_of(mesh: dict[str, int]) -> str:
    return "-".join(f"{axis}{size}" for axis, size in mesh.items())


def _child(rank: int, directory: str, runs: Sequence[tuple[Run, int]]) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    data.BUCKET_BYTES = BUCKET_BYTES
    store = dist.FileStore(f"{directory}/store", RANKS)
    for number, (run, size) in enumerate(runs):
        if rank < size:
            here = dist.PrefixStore(str(number), store)
            # ranks that the jobs before did not need wait here for those that they did
            dist.init_process_group("gloo", store=here, rank=rank, world_size=size, timeout=timedelta(minutes=30))
            try:
                train(run, World.current())
            except BaseException:
                run.attempt.root.joinpath(f"error-{rank}").write_text(traceback.format_exc())
                os._exit(1)
            dist.destroy_process_group()


class Jobs:
    """Jobs on different meshes, and what came of them."""

    def __init__(self, root: Path, trainer_in: TrainerIn) -> None:
        self.root, self._trainer = root, trainer_in(root / "data")
        self.runs: dict[str, tuple[Run, int]] = {}
        root.mkdir(exist_ok=True)
        for name, shape in SHAPES.items():
            (root / name).mkdir()
            config = ModelConfig(**{"tie_embeddings": True, **SHAPE, **shape})
            (root / name / "config.json").write_text(json.dumps(config.to_hf()))
        self.documents = root / "documents.jsonl"
        lines = (f"document {n} says {n * 7} and {'no ' * (n % 5)}more" for n in range(300))
        self.documents.write_text("\n".join(json.dumps({"text": line}) for line in lines))

    def add(
        self, name: str, mesh: dict[str, int], shape: str = "tied", base: str | None = None, **changes: Any
    ) -> None:
        """A job, in few micro-batches: each costs tp ranks a hundred collectives. ``base``: a job before it, which
        made the model."""
        share = BATCH // (mesh.get("dp", 1) * mesh.get("fsdp", 1))
        fields = {
            "model": {"ref": "tiny@1"} if base else {"config": str(self.root / shape)},
            "data": self._trainer.data | {"vocab_size": 281},  # no multiple of 2
            "steps": STEPS,
            "batch_size": BATCH,
            "sequence_length": 16,
            "micro_batch_size": share // mesh.get("pp", 1),
            "checkpoint": {"every_steps": STEPS // 2},
            "mesh": mesh,
        }
        job = self._trainer.job(**(fields | changes))
        dirs = Layout(self.root / "state" / name).job("tiny")
        dirs.attempt(1).root.mkdir(parents=True, exist_ok=True)
        made = self.runs[base][0].job_dirs.export if base else None
        self.runs[name] = (Run(job, dirs, dirs.attempt(1), self._trainer.layout.data, made), job.placed_mesh.size)

    def train(self) -> None:
        """Run all, on ranks that start once."""
        context = processes()
        args = str(self.root), list(self.runs.values())
        ranks = [context.Process(target=_child, args=(rank, *args), daemon=True) for rank in range(RANKS)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        (self.root / "store").unlink()
        errors = [path.read_text() for run, _ in self.runs.values() for path in run.attempt.root.glob("error-*")]
        assert [process.exitcode for process in ranks] == [0] * RANKS, "\n".join(errors)

    def rows(self, name: str) -> list[dict[str, float]]:
        return [json.loads(line) for line in self.runs[name][0].attempt.metrics.read_text().splitlines()]

    def losses(self, name: str) -> list[float]:
        return [row["loss"] for row in self.rows(name)]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.runs[name][0].job_dirs.export / "model.safetensors")

    def check_equal(self, name: str, reference: str) -> None:
        for ours, theirs in zip(self.rows(name), self.rows(reference), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5), name
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5), name
        assert self.rows(name)[-1]["validation_loss"] == pytest.approx(
            self.rows(reference)[-1]["validation_loss"], rel=1e-5
        )
        ours, theirs = self.weights(name), self.weights(reference)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.allclose(ours[key], theirs[key], rtol=0, atol=1e-4), (name, key)
