"""Revisions of services as Ray Serve applications, one each.

Serve starts replicas, looks after them and restarts those that die; how many there are is ``plan``'s decision. Requests
do not pass through Serve: replicas listen themselves, and the front door knows where (``deployments/replica.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

import ray
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

from llmos.core.types import ServiceStatus
from llmos.layout import Layout
from llmos.spec import Service

_PREFIX = "llmos-service-"
_REPLICA = "deployments.replica:build"
_ERROR = re.compile(r"llmos\.errors\.\w+: ")


def deploy(layout: Layout, unit: str, service: Service, digest: str, replicas: int) -> None:
    """Bring ``unit``, a revision of ``service``, to ``replicas`` replicas of the spec with ``digest``. Returns before
    they answer."""
    name, _, version = service.model.partition("@")
    app = _load(_REPLICA)(layout, service, layout.model(name, int(version)), digest, replicas)
    if not _details():
        serve.start(proxy_location=ProxyLocation.Disabled)
    # without waiting: the control loop must not stand still while a replica loads its model
    serve.run_many(
        [serve.RunTarget(app, name=_PREFIX + unit, route_prefix=None)],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def remove(unit: str) -> None:
    """Ask a unit's replicas to end."""
    serve.delete(_PREFIX + unit, _blocking=False)


def remove_everything() -> None:
    """Delete every application of llmos, and wait until they are gone. Serve ends if it was started for them."""
    details = _details()
    for name in _applications(details):
        if name.startswith(_PREFIX):
            serve.delete(name)
    if details and details["proxy_location"] == ProxyLocation.Disabled and not _applications(_details()):
        serve.shutdown()


def observe() -> dict[str, ServiceStatus]:
    """Every deployed unit, by name."""
    apps = _applications(_details())
    ours = {name.removeprefix(_PREFIX): app for name, app in apps.items() if name.startswith(_PREFIX)}
    groups = _groups() if ours else {}
    return {name: _status(name, app, groups) for name, app in ours.items()}


def _groups() -> dict[str, tuple[str, ...]]:
    """By the names of their actors, the nodes of all replicas that have a placement group: one for each bundle."""
    return {
        str(group["name"]): tuple(node for _, node in sorted(group["bundles_to_node_id"].items()))
        for group in ray.util.placement_group_table().values()
        if group["state"] == "CREATED"
    }


def _status(service: str, app: Mapping[str, Any], groups: Mapping[str, tuple[str, ...]]) -> ServiceStatus:
    removing = app["status"] == "DELETING"
    for deployment in app["deployments"].values():  # a service has exactly one
        config = deployment["deployment_config"]
        replicas, user_config = deployment["replicas"], config.get("user_config") or {}
        return ServiceStatus(
            service,
            digest=user_config.get("digest", ""),
            target=config["num_replicas"],
            ready=sum(replica["state"] == "RUNNING" for replica in replicas),
            message=_message(app, deployment),
            nodes=tuple(_nodes(replicas, groups, user_config)),
            removing=removing,
        )
    return ServiceStatus(service, digest="", target=0, ready=0, message=app["message"], removing=removing)


def _nodes(
    replicas: Iterable[Mapping[str, Any]], groups: Mapping[str, tuple[str, ...]], config: Mapping[str, Any]
) -> Iterable[str]:
    """A node for each rank of each replica that has its place. ``config`` says of how many groups of how many ranks a
    replica is; a group is on one node."""
    for replica in replicas:
        alone = (replica["node_id"],) if replica.get("node_id") else ()
        found = groups.get(replica.get("actor_name") or "", alone)
        if len(found) == config.get("groups", 1):
            yield from (node for node in found for _ in range(config.get("together", 1)))


def _message(app: Mapping[str, Any], deployment: Mapping[str, Any]) -> str:
    """What is wrong, in one line: the error that a traceback ends with, its hint included."""
    text = (deployment.get("message") or app.get("message") or "").strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if _ERROR.match(line)]
    if not errors:
        return lines[-1] if lines else ""
    return _ERROR.sub("", " – ".join(lines[errors[-1] : errors[-1] + 2]))


def _details() -> dict[str, Any]:
    """What Serve tells about itself, empty if it does not run."""
    try:
        client = _get_global_client(raise_if_no_controller_running=False)
    except RayServeException:
        return {}
    return dict(client.get_serve_details()) if client else {}


def _applications(details: Mapping[str, Any]) -> dict[str, Any]:
    return dict(details.get("applications", {}))


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)
