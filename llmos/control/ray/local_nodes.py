"""Nodes that are processes of this machine, for Ray's autoscaler: what ``llmos up --autoscale-local`` grows by.

Ray's autoscaler loads the class by its name, in its own process, and calls it from several threads.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from llmos.control.node_kinds import LOCAL_HEAD
from llmos.control.ray.local_node import READY
from llmos.errors import ClusterError

START_TIMEOUT_S = 45.0
END_TIMEOUT_S = 10.0
POLL_S = 0.1
Tags = dict[str, str]

HEAD: Tags = {
    TAG_RAY_NODE_KIND: NODE_KIND_HEAD,
    TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
    TAG_RAY_USER_NODE_TYPE: LOCAL_HEAD,
}


@dataclass(slots=True)
class _Local:
    """A node besides the head: its process, the directory that is its own, and what Ray has said about it."""

    process: subprocess.Popen[bytes]
    directory: Path
    log: Path
    tags: Tags
    joined: bool = False

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def end(self, deadline: float) -> None:
        """Wait until it has ended, as it was asked to; from ``deadline`` (monotonic) on it is killed."""
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()  # Ray has its processes end with it
            self.process.wait()
        self.clear()

    def clear(self) -> None:
        """Remove what it has left on the disk, once it has ended."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.log.unlink(missing_ok=True)

    def last_words(self) -> str:
        """The last line that it has written."""
        with suppress(OSError):
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
            return next((line.strip() for line in reversed(lines) if line.strip()), "")
        return ""


class LocalNodes(NodeProvider):
    """Implements Ray's provider of nodes. Ids are what the nodes have as ``RAY_CLOUD_INSTANCE_ID``."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._lock = threading.Lock()
        self._locals: dict[str, _Local] = {}

    def non_terminated_nodes(self, tag_filters: Tags) -> list[str]:
        """The ids of the nodes that run and have these tags; one whose process has ended is forgotten."""
        with self._lock:
            for id in [id for id, node in self._locals.items() if node.ended and node.joined]:
                self._locals.pop(id).clear()
            tags = {LOCAL_HEAD: HEAD, **{id: node.tags for id, node in self._locals.items() if not node.ended}}
        return [id for id, own in tags.items() if tag_filters.items() <= own.items()]

    def node_tags(self, node_id: str) -> Tags:
        if node_id == LOCAL_HEAD:
            return dict(HEAD)
        node = self._locals.get(node_id)
        return dict(node.tags) if node else {}

    def set_node_tags(self, node_id: str, tags: Tags) -> None:
        if node := self._locals.get(node_id):
            node.tags |= tags

    def is_running(self, node_id: str) -> bool:
        return node_id in self.non_terminated_nodes({})

    def is_terminated(self, node_id: str) -> bool:
        return not self.is_running(node_id)

    def internal_ip(self, node_id: str) -> str:
        return "127.0.0.1"

    def external_ip(self, node_id: str) -> str:
        return "127.0.0.1"

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: Tags,
        count: int,
        resources: dict[str, float],
        labels: Tags,
    ) -> dict[str, Any]:
        """Start ``count`` nodes and wait until each has joined the cluster. Raises ClusterError when some have not."""
        started = [self._start(tags, resources, labels) for _ in range(count)]
        failures = [why for id in started if (why := self._joined(id))]
        if failures:
            raise ClusterError(f"{len(failures)} of {count} local nodes did not start: {failures[0]}")
        return {id: {} for id in started}

    def terminate_node(self, node_id: str) -> None:
        self.terminate_nodes([node_id])

    def terminate_nodes(self, node_ids: Iterable[str]) -> None:
        """End the nodes together. Ray has drained them."""
        with self._lock:
            ending = [self._locals.pop(id) for id in node_ids if id in self._locals]
        for node in ending:
            node.process.terminate()
        deadline = time.monotonic() + END_TIMEOUT_S
        for node in ending:
            node.end(deadline)

    def _start(self, tags: Tags, resources: dict[str, float], labels: Tags) -> str:
        id = f"local-{secrets.token_hex(4)}"
        log = Path(self.provider_config["logs"], f"{id}.log")
        log.touch()
        directory = Path(
            tempfile.mkdtemp(prefix="llmos-node-")
        )  # short: sockets lie below it, their paths have a limit
        command = [sys.executable, "-m", "llmos.control.ray.local_node", self.provider_config["address"]]
        command += [str(directory), json.dumps(resources), json.dumps(labels)]
        environment = {**os.environ, "RAY_CLOUD_INSTANCE_ID": id, "RAY_NODE_TYPE_NAME": tags[TAG_RAY_USER_NODE_TYPE]}
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        with self._lock:
            self._locals[id] = _Local(process, directory, log, dict(tags))
        return id

    def _joined(self, id: str) -> str:
        """Wait until node ``id`` has joined; otherwise why it has not. It is gone then."""
        deadline = time.monotonic() + START_TIMEOUT_S
        node = self._locals.get(id)
        while node and not node.ended and time.monotonic() < deadline:
            if (node.directory / READY).exists():
                node.joined = True
                return ""
            time.sleep(POLL_S)
        if node is None:
            return "it was ended while it started"
        why = node.last_words() or f"it did not join within {START_TIMEOUT_S:.0f} s"
        self.terminate_nodes([id])
        return why
