"""A Ray node of another address, as another machine has: ``python -m tests.ray.far_node ADDRESS DIRECTORY HOST``.

It offers ``far: 1`` and one CPU that nobody asks for elsewhere, and ends with whoever started it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from ray._private.node import Node

from llmos.control.ray.local_node import POLL_S, READY, parameters


def main() -> None:
    """Join the cluster, and stay."""
    address, directory, host = sys.argv[1:]
    parent = os.getppid()
    wanted = parameters(address, directory, {"CPU": 1, "far": 1}, {})
    wanted.node_ip_address = host
    node = Node(wanted)
    Path(directory, READY).touch()
    while os.getppid() == parent and not node.dead_processes():
        time.sleep(POLL_S)
    node.kill_all_processes(check_alive=False, allow_graceful=True)


if __name__ == "__main__":
    main()
