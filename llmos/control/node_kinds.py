"""The kinds of node that a cluster's config lets Ray's autoscaler start, and the config of a cluster of local nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmos.core.types import NodeKind, Resources
from llmos.errors import ClusterError
from llmos.settings import FAKE_GPUS

KIND_LABEL = "llmos-kind"
"""The label that tells the kinds of a config apart: what is asked for by it is no other kind's."""
LOCAL_KIND = "local"
LOCAL_HEAD = "head"
LOCAL_IDLE_MINUTES = 0.5
"""A local node that did nothing for so long ends: another one is there within seconds."""

_STANDARD = ("CPU", "GPU", "memory", "object_store_memory")
_LISTS = ("cluster_synced_files", "initialization_commands", "setup_commands", "head_setup_commands")
_COMMANDS = ("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
_EMPTY: dict[str, Any] = {"auth": {}, "file_mounts": {}, **{name: [] for name in (*_LISTS, *_COMMANDS)}}
"""What Ray's autoscaler looks up in every config, and local nodes do not need."""


@dataclass(frozen=True, slots=True)
class NodeKinds:
    """The ``kinds`` of a config, at most ``most`` nodes of all together; ``amounts`` is what Ray calls their resources,
    without memory: how much of that a node has is not known before it runs."""

    kinds: tuple[NodeKind, ...] = ()
    amounts: Mapping[str, Mapping[str, float]] | None = None
    most: int = 0

    def requests(self, wanted: Mapping[str, int]) -> Iterator[tuple[dict[str, float], dict[str, str]]]:
        """The resources and the labels of each node that should be there. More than ``most`` are not asked for: Ray
        would then start none of them."""
        left = self.most
        for kind in self.kinds:
            count = min(wanted.get(kind.name, 0), left)
            left -= count
            for _ in range(count):
                yield dict((self.amounts or {})[kind.name]), dict(kind.labels)


def read(config: Path) -> NodeKinds:
    """The kinds in the config of a Ray cluster (the file that ``ray up`` was given). Raises ClusterError."""
    try:
        found = yaml.safe_load(config.read_text(encoding="utf-8"))
        return _parse(found)
    except (OSError, yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ClusterError(
            f"the autoscaler's config {config} cannot be read: {what}",
            hint="expected the file that `ray up` was given, with `available_node_types` and `head_node_type`",
        ) from error


def local(address: str, nodes: int, resources: Mapping[str, float], logs: Path) -> dict[str, Any]:
    """The config of a cluster of ``nodes`` nodes on this machine with ``resources`` each, the head at ``address`` one
    of them. What the others write goes to files in ``logs``."""
    labels = {KIND_LABEL: LOCAL_KIND, FAKE_GPUS: "true"}
    size = {"resources": dict(resources), "node_config": {}, "min_workers": 0}
    return {
        **_EMPTY,
        "cluster_name": "llmos",
        "max_workers": nodes - 1,
        "upscaling_speed": float(nodes),
        "idle_timeout_minutes": LOCAL_IDLE_MINUTES,
        "provider": {
            "type": "external",
            "module": "llmos.control.ray.local_nodes.LocalNodes",
            "address": address,
            "logs": str(logs),
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": LOCAL_HEAD,
        "available_node_types": {
            LOCAL_HEAD: {**size, "max_workers": 0},
            LOCAL_KIND: {**size, "max_workers": nodes - 1, "labels": labels},
        },
    }


def _parse(config: Mapping[str, Any]) -> NodeKinds:
    if "provider" not in config:
        raise ValueError("it names no provider of nodes")
    types = config.get("available_node_types") or {}
    most = int(config.get("max_workers", sum(int(each.get("max_workers", 0)) for each in types.values())))
    kinds, amounts = [], {}
    for name, each in types.items():
        resources = {key: float(value) for key, value in (each.get("resources") or {}).items()}
        asked = {key: value for key, value in resources.items() if value and "memory" not in key}
        kind = _kind(name, each, resources, most)
        if name != config.get("head_node_type") and kind.most and asked:
            kinds.append(kind)
            amounts[name] = asked
    return NodeKinds(tuple(kinds), amounts, most)


def _kind(name: str, each: Mapping[str, Any], resources: Mapping[str, float], most: int) -> NodeKind:
    custom = tuple(sorted((key, value) for key, value in resources.items() if key not in _STANDARD))
    cpus, gpus, memory = (resources.get(key, 0.0) for key in ("CPU", "GPU", "memory"))
    labels = {str(key): str(value) for key, value in (each.get("labels") or {}).items()}
    return NodeKind(
        name,
        Resources(cpus, gpus, int(memory), custom),
        labels=tuple(sorted(labels.items())),
        fewest=min(int(each.get("min_workers", 0)), most),
        most=min(int(each.get("max_workers", most)), most),
    )
