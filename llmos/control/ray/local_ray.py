"""A Ray head on this machine: everything on loopback, token authentication on, every port free."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from llmos.control import node_kinds
from llmos.control.machine import memory_bytes
from llmos.control.ray.processes import MARKER, Process, end, free_ports
from llmos.control.ray.session import authenticate, check_reachable, connect
from llmos.cores import usable_cores
from llmos.errors import ClusterError
from llmos.files import write_atomic, write_json
from llmos.layout import Layout
from llmos.settings import FAKE_GPUS

START_TIMEOUT_S = 60.0
JOIN_TIMEOUT_S = 120.0
LOOK_EVERY_S = 1
"""How often the autoscaler of local nodes looks: they start within seconds. Ray's own default is 5 s."""
NODES_MEMORY = 0.7
"""The part of the machine's memory that local nodes share between them as a resource."""


def start(layout: Layout, remember: Callable[[dict[str, Any]], None], nodes: int | None = None) -> dict[str, Any]:
    """Start a head: ``{process, session, address, dashboard}``, handed to ``remember`` as soon as there is a process.

    With ``nodes``, Ray's autoscaler runs with it, for a cluster of at most so many nodes on this machine, the head one
    of them; what is returned has its config as ``autoscaling`` and the number as ``autoscale_local``.
    Raises ClusterError with the end of the log if it does not come up; nothing is left of it then.
    """
    if not layout.ray_token.exists():
        write_atomic(layout.ray_token, secrets.token_hex(32).encode(), mode=0o600)
    gcs, dashboard, *_ = ports = free_ports(8)
    session, address = secrets.token_hex(16), f"127.0.0.1:{gcs}"
    command, environment = _command(ports), _environment(layout, session, ports)
    if nodes:
        options, variables = _autoscaling(layout, address, nodes)
        command, environment = [*command, *options], {**environment, **variables}
    log = layout.root / "ray.log"
    with open(log, "wb") as output:
        # a session of its own: Ctrl-C in the terminal is for the command that waits, not for the cluster
        head = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
            cwd=layout.root, start_new_session=True,
        )  # fmt: skip
    process = Process.of(head.pid)
    started = {
        **{"process": {"pid": process.pid, "started": process.started}, "session": session},
        **{"address": address, "dashboard": f"http://127.0.0.1:{dashboard}"},
        **({"autoscaling": str(layout.autoscaling), "autoscale_local": nodes} if nodes else {}),
    }
    try:
        remember(started)
        _wait(head, address, str(log))
    except BaseException:
        end(process, marker=session)
        raise
    return started


def join(layout: Layout, started: dict[str, Any]) -> None:
    """Connect to the head that :func:`start` told of. Raises ClusterError.

    Ray waits 20 s for one to be whole; on a busy machine one that is not ``ready`` yet takes longer.
    """
    authenticate(layout.ray_token)
    deadline = time.monotonic() + JOIN_TIMEOUT_S
    while True:
        try:
            return connect(started["address"])
        except ClusterError:
            if started.get("ready") or time.monotonic() > deadline or not Process(**started["process"]).find():
                raise
        time.sleep(0.1)


def _command(ports: list[int]) -> list[str]:
    gcs, dashboard, client, agent, agent_grpc, metrics, *_ = map(str, ports)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address", "127.0.0.1", "--dashboard-host", "127.0.0.1"]
    command += ["--port", gcs, "--dashboard-port", dashboard, "--ray-client-server-port", client]
    command += ["--dashboard-agent-listen-port", agent, "--dashboard-agent-grpc-port", agent_grpc]
    return [*command, "--metrics-export-port", metrics]


def _environment(layout: Layout, session: str, ports: list[int]) -> dict[str, str]:
    *_, autoscaler, dashboard_metrics = map(str, ports)
    environment = {**os.environ, **authenticate(layout.ray_token), MARKER: session}
    environment |= {"AUTOSCALER_METRIC_PORT": autoscaler, "DASHBOARD_METRIC_PORT": dashboard_metrics}
    # jobs are asked to checkpoint before; Ray itself would wait for actors that never end
    environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"
    # by Ray's own choice, 15, whatever else runs on the machine makes the ranks wait, and each other, in every step
    environment.setdefault("RAY_worker_niceness", "0")
    environment.pop("RAY_ADDRESS", None)
    return environment


def _autoscaling(layout: Layout, address: str, nodes: int) -> tuple[list[str], dict[str, str]]:
    """Write the autoscaler's config; the options and the environment of a head that has it. Each of ``nodes`` has its
    part of this machine's cores, one at least, and of its memory, and one GPU that is a number only."""
    cpus, memory = max(1, len(usable_cores()) // nodes), int(memory_bytes() * NODES_MEMORY / nodes)
    shutil.rmtree(layout.local_nodes, ignore_errors=True)
    layout.local_nodes.mkdir()
    resources = {"CPU": cpus, "GPU": 1, "memory": memory}
    write_json(layout.autoscaling, node_kinds.local(address, nodes, resources, layout.local_nodes))
    options = ["--autoscaling-config", str(layout.autoscaling), "--labels", f"{FAKE_GPUS}=true"]
    options += ["--num-cpus", str(cpus), "--num-gpus", "1", "--memory", str(memory)]
    # the second autoscaler knows a node by these two; the first does not go by the labels of what is asked for
    variables = {"RAY_CLOUD_INSTANCE_ID": node_kinds.LOCAL_HEAD, "RAY_NODE_TYPE_NAME": node_kinds.LOCAL_HEAD}
    return options, {
        **variables,
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": str(LOOK_EVERY_S),
    }


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
