"""One more Ray node on this machine, of a cluster whose head listens on 127.0.0.1 alone.

    python -m benchmarks.loopback_node ADDRESS DIRECTORY CPUS        until it is ended

``ray start --address 127.0.0.1:PORT`` cannot do this: it takes the machine's outward address for the loopback one, and
that head does not listen there. This starts the same processes (as ``ray.cluster_utils`` does), addresses as they are.
``DIRECTORY`` is the node's own: two nodes that share one take each other's sockets. Its path must be short.
"""

from __future__ import annotations

import os
import sys
import threading

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # read at import: workers, too, leave 127.0.0.1 as it is

from ray._private.node import Node
from ray._private.parameter import RayParams

OBJECT_STORE_BYTES = 150 * 2**20


def main() -> None:
    """Join the cluster, and stay."""
    address, directory, cpus = sys.argv[1:]
    parameters = RayParams(
        gcs_address=address,
        node_ip_address="127.0.0.1",
        node_manager_port=0,
        dashboard_agent_listen_port=None,  # any that is free
        temp_dir=directory,
        num_cpus=int(cpus),
        num_gpus=0,
        object_store_memory=OBJECT_STORE_BYTES,
        include_log_monitor=False,  # type: ignore[arg-type]  # declared as a string, meant as a flag
    )
    Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
