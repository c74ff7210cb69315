"""Closing a door that Ray Serve opens: every replica's port for calls from other deployments.

Ray Serve 2.60 starts a gRPC server in each replica, on every interface, without a token, and unpickles what arrives
there: whoever reaches the port runs code. llmos calls replicas through Ray's own actor calls, which ask for the token,
so nobody needs that port from outside.
"""

from __future__ import annotations

from typing import Any

from ray._common.tls_utils import add_port_to_grpc_server
from ray.serve._private import replica as serve_replica

from llmos.errors import ClusterError

_BIND = "add_port_to_grpc_server"


def keep_on_loopback() -> None:
    """Bind this replica's port to 127.0.0.1. To be called while the replica is constructed: it listens after that."""
    if not hasattr(serve_replica, _BIND):
        raise ClusterError(
            "this Ray opens its replicas' ports in another way than Ray 2.60: they would be open to the network",
            hint="install the version of Ray that constraints.txt names",
        )
    setattr(serve_replica, _BIND, _on_loopback)


def _on_loopback(server: Any, address: str) -> int:
    return int(add_port_to_grpc_server(server, f"127.0.0.1:{address.rpartition(':')[2]}"))
