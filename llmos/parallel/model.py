"""A model spread over a mesh: this rank's stages of it, their parameters by name, and the passes through them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from llmos.errors import UsageError
from llmos.models import ModelConfig, Transformer
from llmos.models.linear import Linear
from llmos.parallel import sharded, tensor
from llmos.parallel.layers import split_layers
from llmos.parallel.mesh import RankMesh
from llmos.parallel.pipeline import Direct, Pipeline
from llmos.parallel.sequence import keep_out_of_compiled_code
from llmos.parallel.stage import Numerics, Objective, Stage

log = logging.getLogger("llmos.train")


@dataclass(frozen=True, slots=True)
class Layout:
    """How the work is cut: a rank's step has ``share`` sequences of ``length`` tokens, a micro-batch has ``rows``."""

    rows: int
    share: int
    length: int
    schedule: str = "1f1b"
    stages_per_rank: int = 1


def check(config: ModelConfig, mesh: RankMesh, layout: Layout) -> None:
    """Raises UsageError, with the numbers, unless a model of this shape can be spread so."""
    for what, count in (("heads", config.num_heads), ("key and value heads", config.num_kv_heads)):
        if count % mesh.tp:
            raise _refused(f"`tp: {mesh.tp}` does not divide the model's {count} {what}")
    if layout.length % mesh.tp:
        raise _refused(f"`tp: {mesh.tp}` does not divide `sequence_length: {layout.length}`, which tp ranks share")
    rows = -(-config.vocab_size // mesh.tp)
    if rows * (mesh.tp - 1) >= config.vocab_size:
        raise _refused(f"`tp: {mesh.tp}` leaves a rank nothing of the vocabulary's {config.vocab_size} tokens")
    stages = mesh.pp * layout.stages_per_rank
    if mesh.pp > 1 and config.num_layers < stages:
        asked = f"{stages} stages (pp {mesh.pp} × {layout.stages_per_rank} a rank)"
        raise _refused(f"{asked} need as many layers: the model has {config.num_layers}")
    if mesh.pp > 1:
        check_micro_batches(mesh.pp, layout)


def check_micro_batches(pp: int, layout: Layout) -> None:
    """Raises UsageError unless the schedule can run with the micro-batches that there are."""
    parts, rest = divmod(layout.share, layout.rows)
    split = f"{layout.share} sequences of a rank in micro-batches of {layout.rows}"
    if rest:
        raise _refused(f"{split}: expected parts of one size")
    if parts < pp:
        raise _refused(f"{split} are {parts}: expected at least as many as `pp: {pp}`")
    rounds = max(1, parts // pp)
    if layout.schedule not in ("gpipe", "1f1b") and parts % rounds:
        raise _refused(
            f"{split} are {parts}: `schedule: {layout.schedule}` needs a multiple of {rounds}, such as a "
            f"multiple of `pp: {pp}`"
        )


class SpreadModel:
    """This rank's part of ``whole``, which is taken apart; all ranks must hold the same weights.

    ``parameters`` maps each name in the whole model to this rank's part: a Tensor where the rank holds all of it, a
    DTensor over fsdp and tp otherwise; a pipeline rank has those of its stages only. ``frozen`` are those that are not
    trained.
    """

    def __init__(
        self,
        whole: Transformer,
        mesh: RankMesh,
        layout: Layout,
        objective: Objective,
        numerics: Numerics,
    ) -> None:
        check(whole.config, mesh, layout)
        self.config, self.mesh, self.layout, self.numerics = whole.config, mesh, layout, numerics
        count = mesh.pp * layout.stages_per_rank if mesh.pp > 1 else 1
        cuts = split_layers(whole.config.num_layers, count, _output_cost(whole.config))
        if count > 1 and mesh.world.first:
            log.info("layers of the %d stages: %s", count, ", ".join(str(len(cut)) for cut in cuts))
        self.stages = [Stage(whole, cut, objective, numerics).train() for cut in cuts[mesh.place["pp"] :: mesh.pp]]
        for stage in self.stages:
            if mesh.pp > 1 and layout.schedule == "zero_bubble":
                _split_backward(stage)
            _spread(stage, mesh, numerics)
        self.passes: Pipeline | Direct
        if mesh.pp > 1:
            self.passes = Pipeline(self.stages, mesh, layout.schedule, layout.rows, layout.length)
        else:
            self.passes = Direct(self.stages[0], layout.rows)
        named = [pair for stage in self.stages for pair in stage.named_parameters()]
        self.parameters: Mapping[str, nn.Parameter] = {name: p for name, p in named if p.requires_grad}
        self.frozen: Mapping[str, nn.Parameter] = {name: p for name, p in named if not p.requires_grad}

    def set_scale(self, scale: float) -> None:
        """Multiply the loss by ``scale`` from now on."""
        for stage in self.stages:
            stage.scale = scale


def _spread(stage: Stage, mesh: RankMesh, numerics: Numerics) -> None:
    """From the inside out: layers are split by tp, compiled, and sharded."""
    if mesh.tp > 1:
        tensor.parallelize(stage, mesh.devices["tp"])
    if numerics.compiled:
        keep_out_of_compiled_code()
        for layer in stage.layers:
            layer.compile()
    if mesh.fsdp > 1:
        sharded.shard(stage, mesh, numerics)
    if mesh.world.device.type != "cpu":  # where the whole model was made
        stage.to(mesh.world.device)


def _split_backward(stage: Stage) -> None:
    """Let the gradients of weights be computed apart from those of activations."""
    for module in stage.modules():
        if isinstance(module, Linear):
            module.whole_backward = False


def _output_cost(config: ModelConfig) -> float:
    """Multiplications a token of the output matrix, in those of a layer."""
    outside = config.vocab_size * config.hidden_size
    embeddings = outside if config.tie_embeddings else 2 * outside
    return outside * config.num_layers / (config.num_parameters - embeddings)


def _refused(message: str) -> UsageError:
    return UsageError(message, hint="Change `mesh`, `pipeline`, `batch_size` or `micro_batch_size`.", param="mesh")
