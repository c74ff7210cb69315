"""Have a node start worker processes before there is work for them.

By the call that Ray's own core makes for tasks that queue up; it has no name in its Python API.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc, runtime_environment_pb2

from llmos import standby
from llmos.errors import ClusterError
from llmos.layout import Layout

TIMEOUT_S = 2.0
LEEWAY_S = 120
"""Ray keeps a process for so much longer than it stands by: it ends by itself."""
_messages: Any = node_manager_pb2  # made as they are loaded: types know nothing of what is in them
_common: Any = common_pb2
_environments: Any = runtime_environment_pb2

log = logging.getLogger("llmos.control")


class Prestarter:
    """Asks nodes for processes that stand by, in a thread of its own: the control loop waits for no answer, and goes on
    whatever happens. Without them jobs only start more slowly."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._thread = ThreadPoolExecutor(1, "llmos-standbys")

    def ask(self, node: str, rank: bool, count: int) -> None:
        """Have ``node`` start ``count`` processes for ranks, or for attempts."""
        self._thread.submit(self._try, node, rank, count)

    def _try(self, node: str, rank: bool, count: int) -> None:
        try:
            prestart(node, environment(self._layout, rank), count)
        except Exception:
            log.warning("node %s could not be asked for %d processes that stand by", node, count, exc_info=True)


def prestart(node: str, environment: Any, count: int) -> None:
    """Have the node with this id start ``count`` processes with this environment. Raises ClusterError when it is gone,
    and what gRPC raises."""
    request = _messages.PrestartWorkersRequest(
        language=_common.PYTHON,
        runtime_env_info=environment,
        keep_alive_duration_secs=standby.KEPT_S + LEEWAY_S,
        num_workers=count,
    )
    address = next((_address(each) for each in ray.nodes() if each["NodeID"] == node and each["Alive"]), None)
    if address is None:
        raise ClusterError(f"node {node} is gone")
    with init_grpc_channel(address, ray_constants.GLOBAL_GRPC_OPTIONS) as channel:
        node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=TIMEOUT_S)


def environment(layout: Layout, rank: bool) -> Any:
    """That of a rank or an attempt (Ray's RuntimeEnvInfo), as Ray writes it: it compares the text. A rank's was put
    together with that of the attempt which starts it, and is then written without spaces."""
    variables = standby.rank(layout.root) if rank else standby.attempt(layout.root)
    separators = (",", ":") if rank else (", ", ": ")
    written = json.dumps({"env_vars": variables}, sort_keys=True, separators=separators)
    info = _environments.RuntimeEnvInfo(serialized_runtime_env=written)
    info.runtime_env_config.setup_timeout_seconds = 600
    info.runtime_env_config.eager_install = True
    return info


def _address(node: Mapping[str, object]) -> str:
    return f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
