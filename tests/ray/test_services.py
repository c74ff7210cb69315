"""Services on a real cluster: they answer, survive the death of a replica and of the front door, change and go."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

import llmos
import llmos.settings
from llmos.control.ray import services
from llmos.errors import ConflictError
from tests.ray.test_jobs import LOOPBACK, named, nothing_is_held, until
from tests.support import LLMOS, nano, processes, words


@pytest.fixture(scope="module")
def model(cluster: llmos.Client) -> str:
    done = cluster.wait(cluster.submit(nano("served", workers=1, steps=5)).id, timeout_s=120)
    assert done.phase == "succeeded"
    return str(done.model)


@pytest.fixture(scope="module")
def text(cluster: llmos.Client, model: str) -> llmos.Service:
    """A service that answers; the test of its life ends it."""
    service = llmos.Service(name="text", model=model, keep_s=0)
    cluster.serve(service)
    cluster.wait_service("text", timeout_s=60)
    return service


def test_every_socket_of_a_cluster_that_serves_is_on_loopback(cluster: llmos.Client, text: llmos.Service) -> None:
    assert cluster.complete(text.name, "def f(", max_tokens=1)
    found = open_sockets(Path.home())
    assert {host for _, host, _ in found} <= LOOPBACK, found
    kinds = "doorman", "GatewayActor", "ServeReplica:llmos-service-text", "gcs_server", "raylet"
    for kind in kinds:  # whoever is known to listen was looked at
        assert any(kind in line for line, _, _ in found), (kind, found)


def open_sockets(home: Path) -> list[tuple[str, str, int]]:
    """(command line, host, port) of every socket that others can send to: all that listen, and UDP that is bound. Of
    every process of ``home`` and all that these have started, whatever environment they gave them."""
    ours = {one for process in processes(home) for one in (process, *descendants(process))}
    found = []
    for process in ours:
        with suppress(psutil.NoSuchProcess):  # has just ended
            for one in process.net_connections("inet"):
                if one.laddr and not one.raddr and one.status in (psutil.CONN_LISTEN, psutil.CONN_NONE):
                    found.append((" ".join(words(process)), str(one.laddr.ip), int(one.laddr.port)))
    return sorted(found)


def descendants(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


TRACEBACK = """The deployment failed to start 3 times in a row:
ray::ServeReplica.initialize() (pid=1)
  File "deployments/replica.py", line 107, in _place_to_listen
    raise ClusterError(
llmos.errors.ClusterError: this replica is elsewhere: expected TLS
  put a certificate there
"""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("", ""),
        ("Traceback:\n  File\nValueError: no\n", "ValueError: no"),
        (TRACEBACK, "this replica is elsewhere: expected TLS – put a certificate there"),
    ],
)
def test_what_is_wrong_is_told_with_its_hint(said: str, told: str) -> None:
    assert services._message({"message": ""}, {"message": said}) == told


def test_life_of_a_service(cluster: llmos.Client, model: str, text: llmos.Service) -> None:
    service = text
    before = cluster.complete("text", "def f(", max_tokens=5, temperature=0)
    (replica,) = named("ServeReplica:llmos-service-text")
    nobody_else_is_let_in(replica)
    time.sleep(3)  # some ticks of the control loop: what runs as wanted is left alone
    assert [process.pid for process in named("ServeReplica:llmos-service-text")] == [replica.pid]
    with pytest.raises(ConflictError, match="text"):
        cluster.remove_model(model)

    replica.kill()
    until(lambda: not cluster.service("text").is_ready, timeout_s=20)
    cluster.wait_service("text", timeout_s=60)
    assert cluster.complete("text", "def f(", max_tokens=5, temperature=0) == before

    (replica,) = named("ServeReplica:llmos-service-text")
    cluster.serve(service.model_copy(update={"max_batch": 3}))
    until(lambda: not replica.is_running() or replica.status() == "zombie", timeout_s=60)
    cluster.wait_service("text", timeout_s=60)
    assert cluster.complete("text", "def f(", max_tokens=5, temperature=0) == before

    cluster.remove_service("text")
    until(lambda: nothing_is_held(cluster))
    assert cluster.services() == []
    cluster.remove_model(model)


def nobody_else_is_let_in(replica: psutil.Process) -> None:
    """A key of the cluster opens the front door only; a replica's own port wants what the front door has signed."""
    ports = {c.laddr.port for c in replica.net_connections() if c.status == psutil.CONN_LISTEN and c.laddr}
    key = {"Authorization": f"Bearer {llmos.settings.connection().key}"}
    statuses = set()
    for port in ports:
        with suppress(httpx.HTTPError):  # Ray's own ports speak gRPC
            statuses.add(httpx.get(f"http://127.0.0.1:{port}/v1/models", headers=key, timeout=5).status_code)
    assert statuses == {401}


def test_a_front_door_that_is_killed_says_when_to_ask_again(cluster: llmos.Client) -> None:
    url, seen = cluster.connection.url, list[tuple[int, str | None]]()
    (before,) = named("GatewayActor")
    before.kill()
    until(lambda: not before.is_running() or before.status() == psutil.STATUS_ZOMBIE)

    def answered() -> bool:
        found = httpx.get(f"{url}/healthz", timeout=10)
        seen.append((found.status_code, found.headers.get("retry-after")))
        return found.status_code == 200

    until(answered)
    assert set(seen) == {(503, "1"), (200, None)}
    (after,) = named("GatewayActor")
    assert after.pid != before.pid
    assert cluster.status()["control"]["pid"]  # the client itself has asked again, if it had to


def test_the_command_line_serves_and_says_no_in_one_line(cluster: llmos.Client) -> None:
    done = subprocess.run([LLMOS, "serve", "nothing@1"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error:") and "nothing" in done.stderr
    assert "Traceback" not in done.stderr
