"""One more Ray node on this machine, of a cluster whose head listens on 127.0.0.1 alone.

    python -m llmos.control.ray.local_node ADDRESS DIRECTORY '{"CPU": 1, "GPU": 1}' ['{"label": "value"}']

``ray start --address 127.0.0.1:PORT`` cannot do this: it takes the machine's outward address for the loopback one, and
that head does not listen there. This starts the same processes (as ``ray.cluster_utils`` does), addresses as they are.
``DIRECTORY`` is the node's own: two nodes that share one take each other's sockets. Its path must be short. A file
``ready`` appears in it once the cluster knows the node; it goes with the node, which ends on SIGTERM, when a process of
it dies, or when whoever started it is gone.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import llmos.control.ray  # noqa: F401  # sets what Ray reads when it is imported: workers leave 127.0.0.1 as it is

from ray._private.node import Node  # isort: skip
from ray._private.parameter import RayParams

OBJECT_STORE_BYTES = 150 * 2**20
READY = "ready"
POLL_S = 0.5


def main() -> None:
    """Join the cluster, and stay."""
    address, directory, resources, *labels = sys.argv[1:]
    parent = os.getppid()
    try:
        node = Node(parameters(address, directory, json.loads(resources), json.loads((labels or ["{}"])[0])))
        Path(directory, READY).touch()
        while os.getppid() == parent and not node.dead_processes():
            time.sleep(POLL_S)
        node.kill_all_processes(check_alive=False, allow_graceful=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def parameters(address: str, directory: str, amounts: dict[str, float], labels: dict[str, str]) -> RayParams:
    """What a node needs to be told: the head's ``address``, a ``directory`` of its own, the ``amounts`` it offers."""
    own: dict[str, Any] = {name: amounts.pop(name, None) for name in ("CPU", "GPU", "memory")}
    return RayParams(
        gcs_address=address,
        node_ip_address="127.0.0.1",
        node_manager_port=0,
        dashboard_agent_listen_port=None,  # any that is free
        temp_dir=directory,
        num_cpus=int(own["CPU"] or 0),
        num_gpus=int(own["GPU"] or 0),
        memory=own["memory"] and int(own["memory"]),  # None: what the machine has
        resources=amounts,
        labels=labels,
        object_store_memory=OBJECT_STORE_BYTES,
        include_log_monitor=False,  # type: ignore[arg-type]  # declared as a string, meant as a flag
    )


if __name__ == "__main__":
    main()
