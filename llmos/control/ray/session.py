"""Connecting this process to the Ray cluster, and the names llmos uses there."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import chdir
from pathlib import Path
from typing import Any

import ray

import llmos
from llmos.errors import ClusterError

NAMESPACE = "llmos"
CONTROL = "llmos-control"
REACH_TIMEOUT_S = 3.0


def authenticate(token: Path) -> dict[str, str]:
    """The environment with which Ray processes find the cluster's token; put into this process's own, too."""
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    os.environ.update(variables)
    return variables


def connect(address: str) -> None:
    """Connect to the Ray cluster at ``address`` (``host:port`` or ``auto``). Raises ClusterError if there is none."""
    if ray.is_initialized():
        return
    if address != "auto":
        check_reachable(address)
    try:
        # Ray puts this process's directory in front of the path that workers import from; in the user's directory,
        # `deployments` and `llmos` may be something else
        with chdir(Path(llmos.__file__).parents[1]):
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"cannot join the Ray cluster at `{address}`: {_first_line(error)}",
            hint="expected `auto` or HOST:PORT of a running cluster and its token (RAY_AUTH_TOKEN_PATH); "
            "leave the address out (and RAY_ADDRESS unset) to start one",
        ) from error


def logs() -> Path:
    """Where the cluster that this process is connected to writes the logs of this machine's processes."""
    node: Any = ray._private.worker.global_worker.node
    return Path(node.get_logs_dir_path())


def check_reachable(address: str) -> None:
    """Raise ClusterError unless something listens at ``host:port``: Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    try:
        if not (host and port.isdecimal()):
            raise OSError("that is not HOST:PORT")
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster at `{address}`: {error.strerror or error}",
            hint="expected `auto` or HOST:PORT of a running Ray head (its GCS port); "
            "leave the address out (and RAY_ADDRESS unset) to start a cluster here",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
