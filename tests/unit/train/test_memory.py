"""What the capacity model says of memory is what tensors take: the real step runs on tensors that hold no numbers."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llmos.control.capacity import MICRO_BATCH_TOKENS, PARTS_PER_STAGE, hardware_of, model_shape, ways
from llmos.core.capacity import Mesh, ModelShape, Training, memory, training_memory
from llmos.models import ModelConfig, Transformer, block_attention, rope
from llmos.parallel.gradients import Gradients
from llmos.parallel.layers import split_layers
from llmos.parallel.mesh import RankMesh
from llmos.parallel.model import Layout, SpreadModel, _output_cost
from llmos.parallel.stage import Numerics
from llmos.parallel.world import World
from llmos.spec import PRESETS, TrainJob, parse
from llmos.spec import Optimizer as OptimizerSpec
from llmos.train import loss, step
from llmos.train.batch import Batch
from llmos.train.optimizer import Optimizer
from llmos.train.precision import compute_dtype

VOCABULARY = 2048


class Live(TorchDispatchMode):
    """Counts the bytes of the storages that exist, and the most that ever did."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._sizes:
                    self._sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._free, storage._cdata)
        self.peak = max(self.peak, self.now)
        return out

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


@contextmanager
def fake() -> Iterator[Live]:
    rope._frequencies.cache_clear()  # holds tensors of another mode
    with FakeTensorMode(), Live() as live:
        yield live
    rope._frequencies.cache_clear()


def peak_bytes(config: ModelConfig, precision: str, rows: int, tokens: int, recompute: str) -> int:
    """The most bytes of tensors while the second optimizer step runs."""
    with torch.device("meta"):
        model = Transformer(config).train()
    with fake() as live:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                module._parameters[name] = None if parameter is None else nn.Parameter(torch.empty(parameter.shape))
        layout = Layout(rows=rows, share=rows, length=tokens)
        numerics = Numerics(compute_dtype(precision, torch.device("cpu")), recompute=recompute)
        spread = SpreadModel(model, RankMesh(World()), layout, loss.cross_entropy_sum, numerics)
        optimizer = Optimizer(spread.parameters, OptimizerSpec(), spread.mesh.line("dp"))
        gradients = Gradients(spread.parameters, spread.mesh, riders=2)
        for _ in range(2):
            gradients.zero()
            batch = Batch.of(torch.randint(VOCABULARY, (rows, tokens + 1)))
            spread.passes.accumulate(batch.tokens_BT, batch.targets_BT)
            optimizer.step(1e-3, gradients.local())
        return live.peak


QWEN3 = {"architecture": "qwen3", "qk_norm": True}
SLOW = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("preset", "precision", "rows", "tokens", "recompute", "tolerance"),
    [
        *[("nano", "fp32", 4, 128, "none", 0.03), ("nano", "bf16", 2, 512, "none", 0.03)],
        pytest.param("tiny", "fp32", 2, 1024, "none", 0.03, marks=SLOW),
        pytest.param("tiny", "fp32", 8, 256, "selective", 0.03, marks=SLOW),
        pytest.param("tiny", "fp32", 2, 1024, "full", 0.03, marks=SLOW),
        pytest.param("tiny", "bf16", 8, 256, "none", 0.03, marks=SLOW),
        pytest.param("tiny", "bf16", 8, 256, "selective", 0.08, marks=SLOW),
        pytest.param("tiny", "bf16", 8, 256, "full", 0.08, marks=SLOW),
        pytest.param("small", "bf16", 1, 256, "none", 0.03, marks=SLOW),
    ],
)
def test_memory_is_what_tensors_take(
    preset: str, precision: str, rows: int, tokens: int, recompute: str, tolerance: float
) -> None:
    training = Training(rows, rows, tokens, precision=precision, cpu=True, checkpointing=recompute)
    predicted = training_memory(ModelShape.of(PRESETS[preset], vocab_size=VOCABULARY), training, Mesh())
    config = ModelConfig.from_preset(PRESETS[preset], VOCABULARY, None, None)
    alive = peak_bytes(config, precision, rows, tokens, recompute)
    assert predicted.total - predicted.allocator == pytest.approx(alive, rel=tolerance)


@pytest.mark.parametrize("has", [{"architecture": "qwen2", "attention_bias": True}, QWEN3], ids=["qwen2", "qwen3"])
def test_memory_of_other_families(has: dict[str, Any]) -> None:
    """Biases are nearly nothing; norms of heads keep what they read."""
    config = dataclasses.replace(ModelConfig.from_preset(PRESETS["nano"], VOCABULARY, None, None), **has)
    predicted = training_memory(ModelShape.of(config), Training(4, 4, 128, precision="fp32", cpu=True), Mesh())
    alive = peak_bytes(config, "fp32", 4, 128, "none")
    assert predicted.total - predicted.allocator == pytest.approx(alive, rel=0.01)


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
@pytest.mark.parametrize("layers", [5, 8, 30])
def test_layers_are_split_as_the_trainer_does(stages: int, layers: int) -> None:
    preset = dataclasses.replace(PRESETS["small"], num_layers=layers)
    shape = ModelShape.of(preset, vocab_size=49152)
    cuts = split_layers(layers, stages, _output_cost(ModelConfig.from_preset(preset, 49152, None, None)))
    assert [memory.layers_of(shape, stages, stage) for stage in range(stages)] == [len(cut) for cut in cuts]


@pytest.mark.parametrize(("batch", "pp"), [(64, 1), (64, 2), (48, 4), (6, 2), (4, 4)])
def test_micro_batches_are_those_of_the_trainer(batch: int, pp: int) -> None:
    spec = {"kind": "TrainJob", "name": "a", "model": {"preset": "small"}, "data": {"path": "/t"}, "steps": 1}
    job = parse({**spec, "mesh": {"pp": pp}, "batch_size": batch, "output": {"model": "a"}})
    assert isinstance(job, TrainJob)
    (way,) = ways(job, model_shape(job), hardware_of(job))
    assert way.training.micro_batch == step.default_rows(batch, 256, RankMesh(World(0, pp), pp=pp))


def test_constants_are_those_of_the_code_they_describe() -> None:
    assert {"cpu": MICRO_BATCH_TOKENS["CPU"], "cuda": MICRO_BATCH_TOKENS["GPU"]} == step.MICRO_BATCH_TOKENS
    assert PARTS_PER_STAGE == step._PARTS_PER_STAGE
    blocks = block_attention._SHORT, block_attention._SHORT_BLOCK, block_attention._BLOCK
    assert blocks == (memory.SHORT, memory.SHORT_BLOCK, memory.BLOCK)
    assert Training(1, 1, 1).logit_tokens == loss.CHUNK
    assert range(block_attention.MIN_TOKENS, block_attention.MAX_TOKENS + 1) == memory.BLOCK_ATTENTION_TOKENS
