"""``kind: TrainJob``: what to train, on what, for how long, and where the result goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from llmos.spec.base import (
    AUTO_TAG,
    LARGEST,
    MESH_TAG,
    Conflict,
    Duration,
    Mesh,
    ModelRef,
    Name,
    PositiveInt,
    Resources,
    Strict,
    Variable,
    check_variable,
    min_at_most_max,
)
from llmos.spec.data import Data
from llmos.spec.lora import Lora
from llmos.spec.parallel import RULES, ActivationCheckpointing, Pipeline, Precision
from llmos.spec.presets import PRESETS
from llmos.spec.profile import Profile, profile_within_steps
from llmos.spec.scheduling import After, ExpectedRuntime, Gang, OfTenant, Preemptible, Priority
from llmos.spec.watch import Anomalies, Watchdog

_AnyMesh = Annotated[
    Annotated[Mesh, Tag(MESH_TAG)] | Annotated[Literal["auto"], Tag(AUTO_TAG)],
    Discriminator(lambda value: AUTO_TAG if isinstance(value, str) else MESH_TAG),
]

_AnyMicroBatch = Annotated[
    Annotated[PositiveInt, Tag(MESH_TAG)] | Annotated[Literal["auto"], Tag(AUTO_TAG)],
    Discriminator(lambda value: AUTO_TAG if value == "auto" else MESH_TAG),
]


def check_secret(value: object) -> object:
    """``value`` if it refers to a secret; else ValueError, which never shows the value: it may be the secret itself."""
    scheme, _, target = value.partition(":") if isinstance(value, str) else ("", "", "")
    if scheme == "file" and PurePosixPath(target).is_absolute():
        return value
    if scheme == "env":
        try:
            check_variable(target)
            return value
        except ValueError:
            pass
    raise ValueError(
        "not a reference to a secret: expected `env:NAME` or `file:/absolute/path`, never the value itself "
        "(what was written is not shown here)"
    )


def _exactly_one(source: ModelSource) -> Iterator[Conflict]:
    given = [name for name in ("preset", "config", "ref") if getattr(source, name) is not None]
    if len(given) != 1:
        yield (), f"expected exactly one of `preset`, `config` and `ref`, found {' and '.join(given) or 'none'}"


def _known_preset(source: ModelSource) -> Iterator[Conflict]:
    if source.preset is not None and source.preset not in PRESETS:
        yield ("preset",), f"{source.preset[:80]!r} is not a preset: expected one of {', '.join(PRESETS)}"


class ModelSource(Strict):
    """Where the model's shape and first weights come from: exactly one of the three."""

    preset: str | None = Field(default=None, description=f"a named shape ({', '.join(PRESETS)}), fresh weights")
    config: str | None = Field(default=None, min_length=1, description="a directory with config.json, fresh weights")
    ref: ModelRef | None = Field(default=None, description="a registered model, `name@version`: its shape and weights")

    rules = (_exactly_one, _known_preset)


class Workers(Strict):
    """How many workers (ranks) the job may run on: it grows when nobody waits, and shrinks when somebody does."""

    min: PositiveInt = Field(default=1, description="fewest workers the job runs on")
    max: PositiveInt = Field(default=1, description="most workers the job can use")
    grow_every: Duration = Field(default=60.0, description="how long it runs at least before it goes on with more")

    rules = (min_at_most_max,)


class Optimizer(Strict):
    """How weights follow gradients. The rate warms up linearly, then follows ``schedule`` to its minimum."""

    name: Literal["adamw", "sgd", "muon"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0, description="the peak")
    weight_decay: float = Field(default=0.1, ge=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.95), strict=False
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of `sgd`")
    warmup_steps: int = Field(default=20, ge=0, description="steps of linear warm-up")
    schedule: Literal["cosine", "linear", "wsd"] = Field(
        default="cosine", description="how the rate falls; `wsd` stays at the peak, then falls linearly"
    )
    decay_fraction: float = Field(default=0.2, gt=0, le=1, description="of `wsd`: the share of the steps that decay")
    min_learning_rate_ratio: float = Field(default=0.1, ge=0, le=1, description="last rate as a share of the peak")
    grad_clip: float = Field(default=1.0, gt=0, description="largest norm of all gradients together")


class CheckpointPolicy(Strict):
    """When to save, how, and which checkpoints to keep."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)  # `async` is a word of Python's

    every_steps: PositiveInt = 100
    every: Duration | None = Field(default=None, description="save also when the last one is older than this")
    keep: PositiveInt = Field(default=2, description="how many of the newest to keep")
    keep_best: int = Field(default=0, ge=0, le=LARGEST, description="keep also so many with the least validation loss")
    asynchronous: bool = Field(default=True, alias="async", description="write while training goes on")
    storage: str | None = Field(default=None, min_length=1, description="where to copy each, as in `s3://bucket/dir`")


class Validation(Strict):
    """When to measure the loss on held-out text."""

    every_steps: PositiveInt = 100


class Output(Strict):
    """Where the result goes."""

    model: Name = Field(description="the model's name in the registry; each finished job adds a version")


def _sequence_fits_preset(job: TrainJob) -> Iterator[Conflict]:
    preset = PRESETS.get(job.model.preset or "")
    if preset and job.sequence_length > preset.max_position:
        limit = f"expected at most {preset.max_position}, which preset `{job.model.preset}` is made for"
        yield ("sequence_length",), f"`sequence_length: {job.sequence_length}` is too long: {limit}"


def _lora_has_a_base(job: TrainJob) -> Iterator[Conflict]:
    if job.lora and job.model.ref is None:
        yield ("lora",), "`lora` adapts a registered model: expected `model.ref`"


def _sft_has_chats(job: TrainJob) -> Iterator[Conflict]:
    wrong = {"sft": ("text", "jsonl", "parquet"), "pretrain": ("chat",)}[job.objective]
    for source in job.data.mixture:
        if source.format in wrong:
            expected = "chat" if job.objective == "sft" else "text, jsonl or parquet"
            yield ("data",), f"`format: {source.format}` does not go with `objective: {job.objective}`: use {expected}"


def env_or_secret(job: Any) -> Iterator[Conflict]:
    """A rule for jobs with ``env`` and ``secrets``."""
    for name in sorted(job.env.keys() & job.secrets.keys()):
        yield ("secrets", name), f"`{name}` is in both `env` and `secrets`: expected one of them"


class TrainJob(Strict):
    """A model trained by a gang of workers."""

    kind: Literal["TrainJob"] = "TrainJob"
    name: Name = Field(description="the job's name")
    model: ModelSource = Field(description="exactly one of preset, config and ref")
    data: Data = Field(description="what to train on: `path` or `sources`")
    objective: Literal["pretrain", "sft"] = Field(
        default="pretrain", description="predict every token of texts, or the assistant's tokens of chats"
    )
    lora: Lora | None = Field(default=None, description="train adapters of `model.ref` instead of all its weights")
    mesh: _AnyMesh = Field(default="auto", description="how ranks split the work; `auto` is data parallel")
    workers: Workers = Field(default_factory=lambda fields: _workers_of(fields["mesh"]))
    pipeline: Pipeline = Pipeline()
    resources: Resources = Resources()
    optimizer: Optimizer = Optimizer()
    steps: PositiveInt = Field(description="how many optimizer steps to train")
    batch_size: PositiveInt = Field(
        default=32,
        description="sequences per step, over all ranks; `auto` is the default with `micro_batch_size: auto`",
    )
    micro_batch_size: _AnyMicroBatch | None = Field(
        default=None,
        description="sequences per rank and forward pass: what caches like best, a number, or `auto`: as many as fit; "
        "the step stays the same",
    )
    sequence_length: PositiveInt = Field(default=256, description="tokens per sequence")
    precision: Precision = Field(
        default="auto",
        description="of matrix products; `bf16_weights` also keeps weights in bf16, beside an fp32 copy; `fp16` scales "
        "the loss",
    )
    activation_checkpointing: ActivationCheckpointing = Field(
        default="none", description="compute activations again in the backward pass: all, or all but products"
    )
    compile: bool = Field(default=False, description="compile each layer with torch.compile")
    gradient_reduction: Literal["fp32", "bf16"] = Field(
        default="fp32", description="the type in which data-parallel ranks sum gradients"
    )
    seed: int = Field(default=0, ge=0, le=LARGEST)
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    validation: Validation = Validation()
    anomalies: Anomalies = Anomalies()
    watchdog: Watchdog = Watchdog()
    profile: Profile | None = Field(default=None, description="steps to trace; none if left out")
    env: dict[Variable, str] = Field(default_factory=dict, description="environment variables of the workers")
    secrets: dict[Variable, Annotated[str, BeforeValidator(check_secret)]] = Field(
        default_factory=dict, description="environment variables whose values are read from `env:NAME` or `file:/path`"
    )
    grace: Duration = Field(default=60.0, description="how long it may take to checkpoint and end when it is asked to")
    max_runtime: Duration | None = Field(default=None, description="stop the job after this time, such as 2h")
    retries: int = Field(default=2, ge=0, le=100, description="attempts beyond the first after failures")
    tenant: OfTenant = None
    priority: Priority = 0
    after: After = ()
    expected_runtime: ExpectedRuntime = None
    preemptible: Preemptible = True
    gang: Gang = Gang()
    output: Output = Field(description="where the result goes")

    @property
    def placed_mesh(self) -> Mesh:
        """The mesh the job runs on today: ``auto`` is data parallel over the fewest workers the job accepts."""
        return Mesh(dp=self.workers.min) if self.mesh == "auto" else self.mesh

    @property
    def micro_batch(self) -> int | None:
        """:attr:`micro_batch_size` as a number; None where it is left open."""
        return None if self.micro_batch_size == "auto" else self.micro_batch_size

    @model_validator(mode="before")
    @classmethod
    def _batch_size_auto(cls, data: Any) -> Any:
        """``batch_size: auto``: what a step learns from is never made to fit, only how it is cut is."""
        if isinstance(data, Mapping) and data.get("batch_size") == "auto":
            return {"micro_batch_size": "auto", **{key: data[key] for key in data if key != "batch_size"}}
        return data

    @property
    def meshes(self) -> tuple[Mesh, ...]:
        """Every mesh the job may run on, the smallest first: one for each number of workers that suits it.

        Between ``workers.min`` and ``max``, ``dp`` varies, or ``fsdp`` where the mesh has that and no ``dp``. The other
        axes stay: a rank never holds more than on the mesh that was named, whose memory is known.
        """
        named = self.placed_mesh
        axis = "fsdp" if named.fsdp > 1 and named.dp == 1 else "dp"
        unit = named.size // getattr(named, axis)
        counts = range(-(-self.workers.min // unit), self.workers.max // unit + 1)
        meshes = (named.model_copy(update={axis: count}) for count in counts)
        return tuple(mesh for mesh in meshes if mesh == named or self._suits(mesh)) or (named,)

    def on(self, workers: int) -> TrainJob:
        """The job on exactly so many workers, one of the sizes of :attr:`meshes`."""
        return self._with(next(mesh for mesh in self.meshes if mesh.size == workers))

    def _suits(self, mesh: Mesh) -> bool:
        job = self._with(mesh)
        return not any(True for rule in self.rules for _ in rule(job))

    def _with(self, mesh: Mesh) -> TrainJob:
        size = {"min": mesh.size, "max": mesh.size}
        return self.model_copy(update={"mesh": mesh, "workers": self.workers.model_copy(update=size)})

    @property
    def masks_documents(self) -> bool:
        """Whether tokens see their own document only."""
        mask = self.data.packing.mask
        return mask == "documents" or (mask == "auto" and self.objective == "sft")

    rules = (*RULES, profile_within_steps, _sequence_fits_preset, _lora_has_a_base, _sft_has_chats, env_or_secret)


def _workers_of(mesh: Any) -> Workers:
    """Exactly as many workers as an explicit mesh has ranks; one for ``auto``."""
    size = 1 if mesh == "auto" else mesh.size
    return Workers(min=size, max=size)
