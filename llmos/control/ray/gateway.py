"""The front door as an actor: starting it, asking why it does not answer, ending it. What it does is in
``deployments/gateway.py`` and ``llmos/front``."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from llmos.control.ray import doorman
from llmos.control.ray.session import NAMESPACE
from llmos.layout import Layout

GATEWAY = "llmos-gateway"
ASK_TIMEOUT_S = 2.0
_CLASS = "deployments.gateway:GatewayActor"


def start(layout: Layout, host: str, port: int) -> None:
    """Create the front door's actor on this node unless it exists. Returns before it answers."""
    with suppress(ValueError):
        ray.get_actor(GATEWAY, NAMESPACE)
        return
    module, _, name = _CLASS.partition(":")
    actor = ray.remote(getattr(import_module(module), name)).options(
        name=GATEWAY,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False),
    )
    actor.remote(str(layout.root), host, port)


def failure() -> str | None:
    """Why the front door does not answer, in one line; None while nothing is known to be wrong."""
    with suppress(ValueError, RayError):  # there is none yet, or it is being restarted
        actor: Any = ray.get_actor(GATEWAY, NAMESPACE)
        try:
            said: str | None = ray.get(actor.failure.remote(), timeout=ASK_TIMEOUT_S)
        except ActorDiedError as error:
            return str(error).strip().splitlines()[-1]
        return said
    return None


def remove(layout: Layout) -> None:
    """End the front door for good, and who holds its port."""
    with suppress(ValueError):
        ray.kill(ray.get_actor(GATEWAY, NAMESPACE), no_restart=True)
    doorman.dismiss(layout.front_socket)
