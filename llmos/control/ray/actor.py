"""The control module as a detached actor on the head node: it restarts for ever, and its store is what it remembers."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from llmos.control.control import Control
from llmos.control.loop import Loop
from llmos.control.ray import gateway
from llmos.control.ray.cluster import RayCluster
from llmos.control.ray.fleet import RayFleet
from llmos.control.ray.session import CONTROL, NAMESPACE, logs
from llmos.control.registry import Registry
from llmos.control.replica_table import ReplicaTable
from llmos.control.standbys import MOST
from llmos.control.store import Store
from llmos.core.types import Order
from llmos.errors import ConflictError, LlmosError
from llmos.files import write_atomic
from llmos.heartbeat import Heartbeat
from llmos.layout import Layout

CONCURRENT_CALLS = 32
"""Verbs at once; some take seconds, such as counting a model's bytes."""
PULSE, CONCURRENT_PULSES = "pulse", 8
"""The threads of what is short and must not wait behind verbs: who does not beat in time counts as dead."""
GATEWAY_LOOK_S = 2.0
MONITOR_LOG = "monitor.log"
"""Where Ray's autoscaler, which runs on this node, too, says what it does."""

log = logging.getLogger("llmos.control")


class ControlActor:
    """Carries out verbs and runs the loop. Errors are returned, not raised: Ray would wrap them in its own."""

    def __init__(
        self, state_dir: str, host: str, port: int, autoscaling: str | None, order: str, standbys: int = MOST
    ) -> None:
        self._layout = Layout(Path(state_dir))
        self._place = {"state_dir": state_dir, "host": host, "port": port}
        self._replicas = ReplicaTable()
        if not self._layout.caller_secret.exists():
            write_atomic(self._layout.caller_secret, secrets.token_hex(32).encode(), mode=0o600)
        store = Store(self._layout)
        registry = Registry(self._layout, store, time.time)
        cluster = RayCluster(self._layout, store.services.spec, standbys)
        fleet = RayFleet(Path(autoscaling), logs() / MONITOR_LOG) if autoscaling else None
        self._loop = Loop(store, registry, cluster, self._layout, fleet, Order(order))
        self._control = Control(store, registry, self._loop, self._layout)
        threading.Thread(target=self._loop.run, name="llmos-loop", daemon=True).start()
        threading.Thread(
            target=_keep_front_door, args=(self._layout, host, port), name="llmos-gateway", daemon=True
        ).start()

    def call(self, verb: str, authorization: str | None, arguments: dict[str, Any]) -> Any:
        """The answer of :meth:`Control.call`, or the error it raised."""
        try:
            return self._control.call(verb, authorization, **arguments)
        except LlmosError as error:
            return error

    @ray.method(concurrency_group=PULSE)
    def authorize_all(self, asked: Sequence[tuple[str | None, str]]) -> list[Any]:
        """The answer of :meth:`Control.authorize` to each header and scope, or the error it raised."""
        return [self._authorize(*one) for one in asked]

    def _authorize(self, authorization: str | None, scope: str) -> Any:
        try:
            return self._control.authorize(authorization, scope)
        except LlmosError as error:
            return error

    def completions(self, verb: str, tenant: str, arguments: dict[str, Any]) -> Any:
        """The answer of :meth:`Control.completions`, or the error it raised. For the gateway, which checks keys."""
        try:
            return self._control.completions(verb, tenant, arguments)
        except LlmosError as error:
            return error

    def place(self) -> dict[str, Any]:
        """Where the state lies and the front door listens: ``{state_dir, host, port}``."""
        return self._place

    @ray.method(concurrency_group=PULSE)
    def heartbeat(self, beat: Heartbeat) -> None:
        """A replica says how it is doing."""
        self._replicas.heard(beat)
        if self._loop.rollouts.scaling.heard(beat):
            self._loop.nudge()

    @ray.method(concurrency_group=PULSE)
    def left(self, replica: str) -> None:
        """A replica says that it ends."""
        self._replicas.left(replica)

    @ray.method(concurrency_group=PULSE)
    def fleet(self, door: str = "", asked: Mapping[str, tuple[int, int]] | None = None) -> dict[str, Any]:
        """What the front door wants to know: the fields of :class:`llmos.front.fleet.News`. ``asked`` is what it tells
        itself: the requests that have arrived so far, and those that it holds, by service."""
        if self._loop.rollouts.scaling.demand(door, asked or {}):
            self._loop.nudge()
        services = self._control.routes()
        return {"services": services, "replicas": self._replicas.all(), "complete": self._replicas.complete}

    def training(self) -> list[dict[str, Any]]:
        """The newest metrics of running jobs, for the gateway's own."""
        return self._control.training()

    def record_usage(self, records: list[dict[str, Any]]) -> Any:
        """The answer of :meth:`Control.record_usage`, or the error it raised."""
        try:
            return self._control.record_usage(records)
        except LlmosError as error:
            return error

    def first_key(self, name: str) -> Any:
        """A new admin key: only whoever may connect to the Ray cluster can ask for one without having one."""
        return self._control.create_key(name, ("admin",))

    def rest(self) -> None:
        """Plan no more: the cluster is about to end."""
        self._loop.rest()

    def carry_on(self) -> None:
        """Plan again, if an end that was begun has not come."""
        self._loop.carry_on()


def start(
    layout: Layout, host: str, port: int, autoscaling: str | None = None, order: str = Order.FIFO, standbys: int = MOST
) -> Any:
    """The handle of the control actor, which is created on this node unless it exists. ``autoscaling`` is the config of
    the cluster's autoscaler, if it has one; ``order`` is who goes first, as :class:`Order` names it; at most
    ``standbys`` processes are ready on each node.

    Raises ConflictError if it exists with another state directory or front door: a cluster has one llmos.
    """
    node = ray.get_runtime_context().get_node_id()
    remote: Any = ray.remote  # its types know nothing of these groups
    actor = remote(concurrency_groups={PULSE: CONCURRENT_PULSES})(ControlActor).options(
        name=CONTROL,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=CONCURRENT_CALLS,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    )
    handle: Any = actor.remote(str(layout.root), host, port, autoscaling, order, standbys)
    there: dict[str, Any] = ray.get(handle.place.remote())
    if there != {"state_dir": str(layout.root), "host": host, "port": port}:
        url = f"http://{there['host']}:{there['port']}"
        raise ConflictError(
            f"llmos already runs on this cluster: its front door is {url}, its state is in {there['state_dir']}",
            hint=f"use that one (`llmos login {url}`), or give `up` the same LLMOS_STATE_DIR and `--port`",
        )
    ray.get(handle.carry_on.remote())
    return handle


def _keep_front_door(layout: Layout, host: str, port: int) -> None:
    """Start the front door, and again should it ever be gone for good. Ray restarts one that dies."""
    while True:
        try:
            gateway.start(layout, host, port)
        except Exception:
            log.exception("the front door could not be started; trying again")
        time.sleep(GATEWAY_LOOK_S)
