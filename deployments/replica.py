"""One copy of a model that answers: an engine inside a Ray Serve replica."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, cast

import ray
from ray import serve

from deployments.handle_port import keep_on_loopback
from deployments.ranks import RayGang
from llmos.control.translate import replica_gang, replica_groups
from llmos.core.types import Resources
from llmos.errors import EngineError, LlmosError
from llmos.infer.local import LocalEngine
from llmos.openai.caller import Caller
from llmos.openai.relay import pack
from llmos.openai.schema import ChatRequest, CompletionRequest
from llmos.serving import EngineBackend
from llmos.settings import FAKE_GPUS
from llmos.spec import Service

SHUTDOWN_GRACE_S = 5
HEALTH_CHECK_S = 2


class Replica:
    """Runs one engine. ``reconfigure`` only remembers which spec it belongs to: a new engine is a new replica."""

    def __init__(self, service: Service, model_dir: str) -> None:
        keep_on_loopback()
        self._engine = _engine_class(service)(
            model_dir,
            process=True,
            max_queue=service.max_queue,
            gang=RayGang(service.mesh, service.resources) if len(replica_groups(service)) > 1 else None,
            dtype=service.dtype,
            device="cuda" if service.resources.gpus and not _fake_gpus() else "cpu",
            threads=service.threads,
            cores=max(1, int(service.resources.cpus * service.mesh.size)),
            max_batch=service.max_batch,
            context_length=service.context_length,
            memory_bytes=service.cache_memory,
            token_budget=service.token_budget,
            prefix_cache=service.prefix_cache,
            tp=service.mesh.tp,
            pp=service.mesh.pp,
            speculative=service.speculative,
        )
        self._backend = EngineBackend(self._engine, self._engine.tokenizer, service.name, service.weights)
        self._digest = ""

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        self._digest = config["digest"]

    async def answer(
        self, request: CompletionRequest | ChatRequest, caller: Caller
    ) -> AsyncGenerator[bytes | LlmosError, None]:
        """The answer in pieces that are ready to send; an error is the last piece."""
        async for piece in pack(self._backend.answer(request, caller)):
            yield piece

    def check_health(self) -> None:
        """Serve replaces a replica whose engine has failed."""
        if not self._engine.stats()["healthy"]:
            raise EngineError("the engine has failed", hint="Serve replaces this replica")

    def __del__(self) -> None:
        if engine := getattr(self, "_engine", None):
            engine.close()


def _fake_gpus() -> bool:
    """Whether the GPUs of this node are numbers only."""
    return FAKE_GPUS in ray.get_runtime_context().get_node_labels()


def _engine_class(service: Service) -> type[LocalEngine]:
    if service.engine == "llmos":
        return LocalEngine
    from llmos.infer.vllm import VllmEngine  # with torch, which this process otherwise does without

    return VllmEngine


def build(service: Service, model_dir: str, digest: str, replicas: int) -> serve.Application:
    """The application of ``replicas`` copies of the model in ``model_dir``, as ``service`` wants them."""
    gang, groups = replica_gang(service), replica_groups(service)
    make: Any = serve.deployment(Replica)
    deployment = make.options(
        name="replica",
        num_replicas=replicas,
        max_ongoing_requests=service.max_batch + service.max_queue + 1,  # the engine's queue refuses, with a reason
        user_config={"digest": digest, "groups": len(groups), "together": gang.together},
        health_check_period_s=HEALTH_CHECK_S,
        graceful_shutdown_timeout_s=SHUTDOWN_GRACE_S,
        **_place(groups),
    )
    return cast(serve.Application, deployment.bind(service, model_dir))


def _place(groups: Sequence[Resources]) -> dict[str, Any]:
    """What Serve reserves: all on one node for the replica's own actor, or a bundle for each group of ranks.

    Then the replica is in the first bundle and holds nothing itself, for the ranks hold all of it.
    """
    if len(groups) == 1:
        (one,) = groups
        memory = {"memory": one.memory_bytes} if one.memory_bytes else {}
        return {
            "ray_actor_options": {"num_cpus": one.cpus, "num_gpus": one.gpus, **memory, "resources": dict(one.custom)}
        }
    wanted = [{"CPU": one.cpus, "GPU": one.gpus, "memory": one.memory_bytes, **dict(one.custom)} for one in groups]
    bundles = [{name: amount for name, amount in each.items() if amount} for each in wanted]
    own = {"num_cpus": 0, "num_gpus": 0}
    return {"ray_actor_options": own, "placement_group_bundles": bundles, "placement_group_strategy": "PACK"}
