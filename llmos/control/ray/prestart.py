"""Have a node start worker processes before there is work for them.

By the call that Ray's own core makes for tasks that queue up; it has no name in its Python API.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc, runtime_environment_pb2

from llmos import standby
from llmos.errors import ClusterError

TIMEOUT_S = 2.0
_messages: Any = node_manager_pb2  # made as they are loaded: types know nothing of what is in them
_common: Any = common_pb2
_environments: Any = runtime_environment_pb2


def prestart(node: str, rank: bool, count: int, kept_s: int) -> None:
    """Have the node with this id start ``count`` processes for ranks, or for attempts, and keep each for ``kept_s``
    seconds unless an actor takes it. Raises ClusterError if it cannot be asked."""
    request = _messages.PrestartWorkersRequest(
        language=_common.PYTHON,
        runtime_env_info=_environment(rank),
        keep_alive_duration_secs=kept_s,
        num_workers=count,
    )
    address = next((_address(each) for each in ray.nodes() if each["NodeID"] == node and each["Alive"]), None)
    try:
        if address is None:
            raise ClusterError(f"node {node} is gone")
        with init_grpc_channel(address) as channel:
            stub = node_manager_pb2_grpc.NodeManagerServiceStub(channel)
            stub.PrestartWorkers(request, timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        raise ClusterError(f"node {node} could not be asked to start processes: {error}") from error


def _address(node: Mapping[str, object]) -> str:
    return f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"


def _environment(rank: bool) -> Any:
    """As Ray writes it: an actor gets a process whose environment is the same to the letter. That of a rank was put
    together with that of the attempt which starts it, and is then written without spaces."""
    variables, spaces = (standby.RANK, (",", ":")) if rank else (standby.ATTEMPT, (", ", ": "))
    written = json.dumps({"env_vars": dict(variables)}, sort_keys=True, separators=spaces)
    info = _environments.RuntimeEnvInfo(serialized_runtime_env=written)
    info.runtime_env_config.setup_timeout_seconds = 600
    info.runtime_env_config.eager_install = True
    return info
