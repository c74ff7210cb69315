"""``kind: Service``: a registered model that answers requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from llmos.spec.base import Conflict, Mesh, ModelRef, Name, PositiveInt, Resources, Strict, min_at_most_max


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


def _one_rank(service: Service) -> Iterator[Conflict]:
    for axis in ("fsdp", "tp", "pp"):
        if (ways := getattr(service.mesh, axis)) > 1:
            yield ("mesh", axis), f"`mesh.{axis}: {ways}` is not supported for services yet: expected 1"


class Service(Strict):
    """A model behind ``/v1``, under the service's name."""

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
    max_batch: PositiveInt = Field(default=16, description="sequences generated at once by a replica")
    max_queue: PositiveInt = Field(default=128, description="requests that may wait at a replica; more are refused")
    context_length: PositiveInt | None = Field(
        default=None, description="tokens of prompt and answer; the model's if absent"
    )

    rules = (_no_data_parallel, _one_rank)
