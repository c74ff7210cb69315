"""``kind: Service``: a registered model that answers requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from llmos.spec.base import (
    LARGEST,
    Conflict,
    Mesh,
    ModelRef,
    Name,
    PositiveInt,
    Resources,
    Size,
    Strict,
    as_list,
    min_at_most_max,
)
from llmos.spec.limits import Limits

Seconds = Annotated[float, Field(gt=0, le=LARGEST)]
Aliases = Annotated[
    tuple[Name, ...],
    BeforeValidator(as_list),
    Field(strict=False, max_length=32, description="other names that requests may put into `model`"),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


class Replicas(Strict):
    """How many copies of the model answer: as many as the load needs, within these bounds."""

    min: Annotated[int, Field(ge=0, le=LARGEST)] = Field(
        default=1, description="fewest replicas; with 0 the service ends when it is idle, and a request starts it"
    )
    max: PositiveInt = Field(default=1, description="most replicas")

    rules = (min_at_most_max,)


class Slo(Strict):
    """What is promised to 99 of 100 requests; the number of replicas follows from it. Nothing is promised if absent."""

    first_token_s: Seconds | None = Field(default=None, description="seconds to the first token")
    token_s: Seconds | None = Field(default=None, description="seconds for each token after it")
    queue_s: Seconds | None = Field(default=None, description="seconds that a request waits until a replica takes it")


class Canary(Strict):
    """Another model that answers a share of the requests, to see how it does."""

    model: ModelRef = Field(description="the registered model: `name@version`, `name@alias`, or `name` for its newest")
    weight: Annotated[float, Field(gt=0, lt=1)] = Field(description="the share of the requests")


def _no_data_parallel(service: Service) -> Iterator[Conflict]:
    if service.mesh.dp > 1:
        yield ("mesh",), f"`dp: {service.mesh.dp}` is not for services: expected 1; use `replicas` for more copies"


def _no_fsdp(service: Service) -> Iterator[Conflict]:
    if service.mesh.fsdp > 1:
        what = f"`mesh.fsdp: {service.mesh.fsdp}` is not for services: expected 1"
        yield ("mesh", "fsdp"), f"{what}; `tp` and `pp` share a model between ranks"


def _budget(service: Service) -> Iterator[Conflict]:
    if service.token_budget < service.max_batch:
        what = f"`token_budget: {service.token_budget}` is less than `max_batch: {service.max_batch}`"
        yield ("max_batch",), f"{what}: expected a token for every sequence of a step"


def _speculation(service: Service) -> Iterator[Conflict]:
    if service.speculative and service.engine == "vllm":
        yield ("speculative",), f"`speculative: {service.speculative}` is not for `engine: vllm`: expected 0"


def _other_canary(service: Service) -> Iterator[Conflict]:
    if service.canary and service.canary.model == service.model:
        yield (
            ("canary", "model"),
            f"`canary.model: {service.canary.model}` is the service's own model: expected another",
        )


def _distinct_names(service: Service) -> Iterator[Conflict]:
    if service.name in service.aliases or len(set(service.aliases)) < len(service.aliases):
        yield ("aliases",), f"`aliases: {list(service.aliases)}`: expected each once, and none equal to `name`"


class Service(Strict):
    """A model behind ``/v1``, under the service's name. With a mesh, ``resources`` are those of each rank; the ranks of
    a pipeline stage share a node, stages may be on several."""

    kind: Literal["Service"] = "Service"
    name: Name = Field(description="the service's name: what requests put into `model`")
    model: ModelRef = Field(
        description="the registered model: `name@version`, `name@alias`, which is followed, or `name` for its newest"
    )
    aliases: Aliases = ()
    mesh: Mesh = Mesh()
    replicas: Replicas = Replicas()
    idle_s: Seconds = Field(default=300, description="seconds without a request, after which `replicas.min: 0` holds")
    slo: Slo = Slo()
    limits: Limits = Field(default=Limits(), description="what all keys together may ask of it")
    canary: Canary | None = Field(default=None)
    keep_s: Annotated[float, Field(ge=0, le=LARGEST)] = Field(
        default=60, description="seconds that the replicas of the revision before stay after an update, for a rollback"
    )
    resources: Resources = Resources()
    engine: Literal["llmos", "vllm"] = Field(
        default="llmos", description="what generates: our own engine, or vLLM, an extra that must be installed"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: PositiveInt | None = Field(
        default=None, description="CPU threads of a rank; if absent, found by measurement within `resources.cpus`"
    )
    max_batch: PositiveInt = Field(default=64, description="sequences generated at once by a replica")
    max_queue: PositiveInt = Field(default=128, description="requests that may wait at a replica; more are refused")
    context_length: PositiveInt | None = Field(
        default=None, description="tokens of prompt and answer; the model's if absent"
    )

    token_budget: PositiveInt = Field(default=512, description="tokens of a step, those of prompts included")
    prefix_cache: bool = Field(default=True, description="keep what was computed of prompts for those that begin alike")
    cache_memory: Size | None = Field(
        default=None, description="memory for keys and values, such as 2GiB; a share of what is free if absent"
    )
    speculative: Annotated[int, Field(ge=0, le=16)] = Field(
        default=0, description="tokens guessed in each step by looking up what followed before; none where it loses"
    )
    weights: dict[str, Annotated[float, Field(gt=0, le=1000)]] = Field(
        default={}, description="API key's id: its share of the tokens while requests wait, 1 for all others"
    )

    rules = (_no_data_parallel, _no_fsdp, _budget, _speculation, _other_canary, _distinct_names)
