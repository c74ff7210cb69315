"""One copy of a model that answers: an engine inside a Ray Serve replica, on a port of its own.

Ray Serve starts the replica, asks how it is and ends it; requests come from the front door, over HTTP, signed by it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import ray
from ray import serve

from deployments.encoder import encoder_engine
from deployments.handle_port import keep_on_loopback
from deployments.heart import Heart, Progress
from deployments.ranks import RayGang
from llmos.control.translate import replica_gang, replica_groups
from llmos.core.types import Resources
from llmos.errors import ClusterError, EngineError
from llmos.front.caller import authorizer, read_secret
from llmos.front.listening import Drain, Server, listen, spare_garbage
from llmos.front.replica import create_replica_app
from llmos.front.witness import Witness
from llmos.heartbeat import Heartbeat
from llmos.infer.local import LocalEngine
from llmos.layout import Layout
from llmos.models.encoder_config import is_encoder
from llmos.serving import backend_of
from llmos.settings import FAKE_GPUS
from llmos.spec import Replicas, Service
from llmos.spec import digest as digest_of

SHUTDOWN_GRACE_S = 30.0
"""What requests that run have when their replica is to end."""
CLOSE_S = 3.0
"""What the engine has after that."""
HEALTH_CHECK_S = 2.0
HEALTH_TIMEOUT_S = 5.0
"""Serve replaces a replica that does not answer within this time three times in a row."""


class Replica:
    """Runs one engine. ``reconfigure`` only remembers which spec it belongs to: a new engine is a new replica."""

    def __init__(self, layout: Layout, service: Service, model_dir: str, front_host: str) -> None:
        keep_on_loopback()
        self._service = service
        host, tls = _place_to_listen(layout, front_host)
        make = encoder_engine if is_encoder(model_dir) else _engine
        self._engine = make(service, model_dir, "cuda" if service.resources.gpus and not _fake_gpus() else "cpu")
        witness = Witness(service.name, service.model)
        backend = backend_of(self._engine, service.name, service.weights, witness)
        self._door = Drain(create_replica_app(backend, authorizer(read_secret(layout))))
        listener = listen(host)
        self._url = f"{'https' if tls else 'http'}://{host}:{listener.getsockname()[1]}"
        self._server = Server(self._door, listener, tls=tls)
        spare_garbage()
        self._server.start()
        self._id = serve.get_replica_context().replica_id.unique_id
        self._progress, self._digest = Progress(), ""
        self._ending = threading.Lock()
        self._heart = Heart(self._id, self._beat, witness)

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Serve calls this before the replica counts as running: from now on the front door knows of it."""
        self._digest = config["digest"]
        self._heart.start()

    def check_health(self) -> None:
        """Serve replaces a replica whose engine has failed, or does nothing although it is asked."""
        if not self._engine.stats()["healthy"]:
            raise EngineError("the engine has failed", hint="Serve replaces this replica")
        if self._beat().stalled:
            raise EngineError("the engine has made no step for too long", hint="Serve replaces this replica")

    def _beat(self) -> Heartbeat:
        stats = self._engine.stats()
        return Heartbeat(
            self._service.name,
            self._digest,
            self._id,
            self._url,
            model=self._service.model,
            running=stats["running"],
            waiting=stats["waiting"],
            blocks=stats.get("blocks", 0),
            blocks_free=stats.get("blocks_free", 0),
            tokens=stats.get("tokens", stats["completion_tokens"]),
            draining=self._door.closing,
            cache_hits=stats.get("prefix_hit_rate"),
            stalled=not stats["healthy"] or self._progress.stalled(stats),
        )

    def __del__(self) -> None:
        """Serve calls this to end the replica: requests that run may end, nothing new is let in."""
        ending: threading.Lock | None = getattr(self, "_ending", None)
        if ending is not None and ending.acquire(blocking=False):
            self._door.closing = True
            self._heart.beat()
            self._door.wait(SHUTDOWN_GRACE_S - CLOSE_S)
            self._heart.end()
            self._server.end()
        if engine := getattr(self, "_engine", None):
            engine.close()


def _place_to_listen(layout: Layout, front_host: str) -> tuple[str, tuple[Path, Path] | None]:
    """The host to listen on, and the files of TLS. On the front door's machine that is loopback, and plain.

    Raises ClusterError on another machine without TLS: whoever reaches the port could read along.
    """
    here = ray.util.get_node_ip_address()
    if here == front_host:
        return "127.0.0.1", None
    tls = layout.certificate, layout.certificate_key
    if not all(path.exists() for path in tls):
        raise ClusterError(
            f"this replica is on {here}, the front door on {front_host}: expected TLS between machines",
            hint=f"put a certificate and its key there (PEM): {tls[0]}, {tls[1]}; see docs/serving.md",
        )
    return here, tls


def _fake_gpus() -> bool:
    """Whether the GPUs of this node are numbers only."""
    return FAKE_GPUS in ray.get_runtime_context().get_node_labels()


def _engine(service: Service, model_dir: str, device: str) -> LocalEngine:
    return _engine_class(service)(
        model_dir,
        process=True,
        max_queue=service.max_queue,
        gang=RayGang(service.mesh, service.resources) if len(replica_groups(service)) > 1 else None,
        dtype=service.dtype,
        device=device,
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


def _engine_class(service: Service) -> type[LocalEngine]:
    if service.engine == "llmos":
        return LocalEngine
    from llmos.infer.vllm import VllmEngine  # with torch, which this process otherwise does without

    return VllmEngine


def build(layout: Layout, service: Service, model_dir: Path, digest: str, replicas: int) -> serve.Application:
    """The application of ``replicas`` copies of the model in ``model_dir``, as ``service`` wants them. To be called on
    the front door's node."""
    gang, groups = replica_gang(service), replica_groups(service)
    # Serve starts all replicas anew when the version or the arguments change, and each time there is no version
    alone = service.model_copy(update={"replicas": Replicas()})
    make: Any = serve.deployment(Replica)
    deployment = make.options(
        name="replica",
        num_replicas=replicas,
        user_config={"digest": digest, "groups": len(groups), "together": gang.together},
        health_check_period_s=HEALTH_CHECK_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=SHUTDOWN_GRACE_S,
        graceful_shutdown_wait_loop_s=0.05,  # Serve itself has sent it no requests that it would have to wait for
        **_place(groups),
    ).options(version=digest_of(alone), _internal=True)
    return cast(serve.Application, deployment.bind(layout, alone, str(model_dir), ray.util.get_node_ip_address()))


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
