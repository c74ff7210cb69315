"""A replica at another address than the front door's: it answers over TLS, and without a certificate not at all.

Slow: a cluster of its own, to which a node of another loopback address comes.
"""

from __future__ import annotations

import json
import os
import shlex
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

import llmos
from llmos.control.ray.session import authenticate
from llmos.layout import Layout
from llmos.spec import Resources
from tests.ray.nodes.runs import until
from tests.ray.test_jobs import named
from tests.support import ROOT, nano, running_cluster, words

HOST = "127.0.0.2"
# as in docs/serving.md
CERTIFICATE = "openssl req -x509 -newkey ed25519 -nodes -days 3650 -subj /CN=llmos"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[llmos.Client]:
    home = tmp_path_factory.mktemp("home")
    with running_cluster(home) as client:
        layout = Layout(home / "state")
        address = json.loads((layout.root / "cluster.json").read_text())["address"]
        command = [sys.executable, "-m", "tests.ray.far_node", address, str(tmp_path_factory.mktemp("far")), HOST]
        node = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **authenticate(layout.ray_token)})
        until(lambda: len(client.status()["nodes"]) == 2)
        yield client
        client.remove_service("text")
        started = psutil.Process(node.pid).children(recursive=True)
        node.terminate()
        node.wait(timeout=60)
        _, alive = psutil.wait_procs(started, timeout=30)
        assert not alive, [words(one) for one in alive]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_replica_elsewhere_answers_over_tls_and_without_a_certificate_not_at_all(cluster: llmos.Client) -> None:
    model = cluster.wait(cluster.submit(nano("served", workers=1, steps=5)).id, timeout_s=120).model
    assert model
    far = Resources(cpus=0.5, custom={"far": 1})
    cluster.serve(llmos.Service(name="text", model=model, keep_s=0, resources=far))
    until(lambda: "expected TLS between machines" in cluster.service("text").message, timeout_s=120)

    tls = Layout(Path.home() / "state").certificate.parent
    tls.mkdir(mode=0o700)
    options = ["-keyout", str(tls / "key.pem"), "-out", str(tls / "certificate.pem")]
    subprocess.run([*shlex.split(CERTIFICATE), *options], check=True, capture_output=True)
    cluster.wait_service("text", timeout_s=120)
    assert cluster.complete("text", "def f(", max_tokens=5, temperature=0)
    (replica,) = named("ServeReplica:llmos-service-text")
    (port,) = (one.laddr.port for one in replica.net_connections("inet") if one.laddr.ip == HOST and not one.raddr)
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://{HOST}:{port}/v1/models")
    trusted = ssl.create_default_context(cafile=str(tls / "certificate.pem"))
    trusted.check_hostname = False
    assert httpx.get(f"https://{HOST}:{port}/v1/models", verify=trusted).status_code == 401  # nobody signed it
