"""A Ray head on this machine: everything on loopback, token authentication on, every port free."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from llmos.control.ray.processes import MARKER, Process, end, free_ports
from llmos.control.ray.session import authenticate, check_reachable
from llmos.errors import ClusterError
from llmos.files import write_atomic
from llmos.layout import Layout

START_TIMEOUT_S = 60.0


def start(layout: Layout, remember: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Start a head: ``{process, session, address, dashboard}``, handed to ``remember`` as soon as there is a process.

    Raises ClusterError with the end of the log if it does not come up; nothing is left of it then.
    """
    if not layout.ray_token.exists():
        write_atomic(layout.ray_token, secrets.token_hex(32).encode(), mode=0o600)
    gcs, dashboard, client, agent, agent_grpc, metrics, autoscaler, dashboard_metrics = free_ports(8)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address", "127.0.0.1", "--dashboard-host", "127.0.0.1"]
    command += ["--port", str(gcs), "--dashboard-port", str(dashboard), "--ray-client-server-port", str(client)]
    command += ["--dashboard-agent-listen-port", str(agent), "--dashboard-agent-grpc-port", str(agent_grpc)]
    command += ["--metrics-export-port", str(metrics)]
    session = secrets.token_hex(16)
    environment = {**os.environ, **authenticate(layout.ray_token), MARKER: session}
    environment |= {"AUTOSCALER_METRIC_PORT": str(autoscaler), "DASHBOARD_METRIC_PORT": str(dashboard_metrics)}
    # jobs are asked to checkpoint before; Ray itself would wait for actors that never end
    environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"
    environment.pop("RAY_ADDRESS", None)
    log = layout.root / "ray.log"
    with open(log, "wb") as output:
        # a session of its own: Ctrl-C in the terminal is for the command that waits, not for the cluster
        head = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
            cwd=layout.root, start_new_session=True,
        )  # fmt: skip
    process, address = Process.of(head.pid), f"127.0.0.1:{gcs}"
    started = {
        "process": {"pid": process.pid, "started": process.started},
        "session": session,
        "address": address,
        "dashboard": f"http://127.0.0.1:{dashboard}",
    }
    try:
        remember(started)
        _wait(head, address, str(log))
    except BaseException:
        end(process, marker=session)
        raise
    return started


def _wait(head: subprocess.Popen[bytes], address: str, log: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return check_reachable(address)
        except ClusterError as error:
            if head.poll() is not None or time.monotonic() > deadline:
                with open(log, encoding="utf-8", errors="replace") as file:
                    tail = "".join(file.readlines()[-10:])
                raise ClusterError(f"Ray did not start:\n{tail}", hint=f"the whole log is in {log}") from error
        time.sleep(0.1)
