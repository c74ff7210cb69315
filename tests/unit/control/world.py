"""The control module on a cluster of numbers: what the tests of this directory are about."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from llmos.control.control import Control
from llmos.control.loop import Loop
from llmos.control.registry import Registry
from llmos.control.store import Store
from llmos.core.types import AttemptPhase, Node, Order, Resources
from llmos.layout import Layout
from llmos.models import ModelConfig, train_bpe
from llmos.sim.cluster import Outcome, SimCluster

Row = dict[str, Any]

SHAPE = ModelConfig(
    vocab_size=300,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_position=64,
)


class World:
    """A state directory with everything on it. ``outcomes`` says how attempts go; those that succeed leave a model."""

    def __init__(self, root: Path, tokenizer: Path, nodes: int = 1) -> None:
        self.layout = Layout(root)
        self.order = Order.FIFO
        self.tokenizer = tokenizer
        self.text = root / "text.txt"
        self.text.parent.mkdir(parents=True, exist_ok=True)
        self.text.write_text("to be or not to be\n")
        machines = [Node(f"node-{i}", Resources(cpus=4, memory_bytes=2**33)) for i in range(nodes)]
        self.cluster = SimCluster(machines, self.outcome)
        self.outcomes: dict[str, list[Outcome]] = {}
        self.open()

    def open(self) -> None:
        """Start the control module, as after a crash."""
        self.store = Store(self.layout)
        self.registry = Registry(self.layout, self.store, self.clock)
        self.loop = Loop(self.store, self.registry, self.cluster, self.layout, order=self.order)
        self.control = Control(self.store, self.registry, self.loop, self.layout, self.clock)

    def clock(self) -> float:
        return self.cluster.now

    def outcome(self, job: str, attempt: int) -> Outcome:
        planned = self.outcomes.get(job, [])
        outcome = planned[attempt - 1] if attempt <= len(planned) else Outcome(10.0)
        if outcome.phase is AttemptPhase.SUCCEEDED and not self.layout.job(job).export.exists():
            write_model(self.layout.job(job).export, self.tokenizer, lineage={"metrics": {"loss": 2.5}})
        return outcome

    def spec(self, name: str = "coder", **changes: Any) -> Row:
        return {
            **{"kind": "TrainJob", "name": name, "model": {"preset": "tiny"}, "data": {"path": str(self.text)}},
            **{"steps": 100, "output": {"model": name}},
            **changes,
        }

    def run(self, seconds: float, step_s: float = 1.0) -> None:
        until = self.cluster.now + seconds
        while self.cluster.now < until:
            self.loop.tick()
            self.cluster.advance(self.cluster.now + step_s)
        self.loop.tick()

    def trained(self, name: str = "coder") -> str:
        """The ref of a model that a job has made."""
        job = self.control.submit_job(self.spec(name))
        self.run(20)
        return str(self.control.get_job(job["id"])["model"])


class Port:
    """The control module in this very process."""

    def __init__(self, control: Control) -> None:
        self.control = control

    async def call(self, verb: str, authorization: str | None, **arguments: Any) -> Any:
        return await asyncio.to_thread(self.control.call, verb, authorization, **arguments)

    async def authorize(self, authorization: str | None, scope: str) -> Row:
        return await asyncio.to_thread(self.control.authorize, authorization, scope)


def write_model(directory: Path, tokenizer: Path, lineage: Row | None = None) -> Path:
    """A small model with weights of zeros, whole in every respect."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(SHAPE.to_hf()))
    save_file({name: np.zeros(shape, np.float32) for name, shape in tensors().items()}, directory / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((tokenizer / name).read_bytes())
    if lineage is not None:
        (directory / "lineage.json").write_text(json.dumps(lineage))
    return directory


def tensors() -> dict[str, tuple[int, ...]]:
    hidden, heads, kv = SHAPE.hidden_size, SHAPE.num_heads * SHAPE.head_dim, SHAPE.num_kv_heads * SHAPE.head_dim
    shapes = {"model.embed_tokens.weight": (SHAPE.vocab_size, hidden), "model.norm.weight": (hidden,)}
    for i in range(SHAPE.num_layers):
        layer = f"model.layers.{i}"
        shapes |= {
            **{
                f"{layer}.self_attn.q_proj.weight": (heads, hidden),
                f"{layer}.self_attn.o_proj.weight": (hidden, heads),
            },
            **{f"{layer}.self_attn.k_proj.weight": (kv, hidden), f"{layer}.self_attn.v_proj.weight": (kv, hidden)},
            **{f"{layer}.mlp.{part}_proj.weight": (SHAPE.intermediate_size, hidden) for part in ("gate", "up")},
            f"{layer}.mlp.down_proj.weight": (hidden, SHAPE.intermediate_size),
            **{f"{layer}.{part}_layernorm.weight": (hidden,) for part in ("input", "post_attention")},
        }
    return shapes


def write_tokenizer(directory: Path) -> Path:
    text = directory / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 20)
    train_bpe([text], 290).save(directory)
    return directory
