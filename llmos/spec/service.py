"""``kind: Service``: a registered model that answers requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from llmos.spec.base import Conflict, Mesh, ModelRef, Name, PositiveInt, Resources, Size, Strict, min_at_most_max


def _fixed(replicas: Replicas) -> Iterator[Conflict]:
    if replicas.min < replicas.max:
        what = f"`max: {replicas.max}` is more than `min: {replicas.min}`"
        yield ("max",), f"{what}: expected the same number, replicas do not follow the load yet"


class Replicas(Strict):
    """How many copies of the model answer."""

    min: PositiveInt = Field(default=1, description="fewest replicas")
    max: PositiveInt = Field(default=1, description="most replicas")

    rules = (min_at_most_max, _fixed)


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


class Service(Strict):
    """A model behind ``/v1``, under the service's name. With a mesh, ``resources`` are those of each rank; the ranks of
    a pipeline stage share a node, stages may be on several."""

    kind: Literal["Service"] = "Service"
    name: Name = Field(description="the service's name: what requests put into `model`")
    model: ModelRef = Field(description="the registered model, `name@version`, or `name` for its newest version")
    mesh: Mesh = Mesh()
    replicas: Replicas = Replicas()
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

    rules = (_no_data_parallel, _no_fsdp, _budget, _speculation)
