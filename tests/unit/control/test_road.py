"""The whole way through the real client: submit, wait, register, serve, remove."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from llmos.client import Client
from llmos.control.api import create_api
from tests.unit.control.world import Port, World


@pytest.fixture
def client(world: World) -> Iterator[Client]:
    """The real client of a real server, on a cluster where a second takes 10 ms."""
    key = world.control.create_key("me", ["admin"])["secret"]
    server = uvicorn.Server(uvicorn.Config(create_api(Port(world.control)), port=0, log_level="error"))
    threads = [threading.Thread(target=server.run), threading.Thread(target=_live, args=(world, server))]
    for thread in threads:
        thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", key) as client:
        yield client
    server.should_exit = True
    for thread in threads:
        thread.join()


def _live(world: World, server: uvicorn.Server) -> None:
    while not server.should_exit:
        world.loop.tick()
        world.cluster.advance(world.cluster.now + 1)
        time.sleep(0.01)


def test_from_a_spec_to_a_served_model(client: Client, world: World) -> None:
    job = client.submit(world.spec())
    assert (job.id, job.steps, job.spec["kind"]) == ("coder-1", 100, "TrainJob")
    job = client.wait("coder", timeout_s=20)
    assert job.succeeded and job.model == "coder@1" and job.attempts == 1 and job.reason == ""
    assert [event.what for event in client.events(job.id)] == ["submitted", "starting", "running", "succeeded"]
    model = client.model("coder")
    assert model.ref == "coder@1" and model.lineage["job"] == "coder-1" and len(model.digest) == 64
    service = client.serve({"kind": "Service", "name": "helper", "model": "coder"})
    assert service.model == "coder@1" and not service.is_ready
    assert client.wait_service("helper", timeout_s=20).is_ready
    status = client.status()
    assert status.jobs["succeeded"] == 1 and status.nodes[0]["used"]["cpus"] == 1
    client.remove_service("helper")
    client.remove_model("coder@1")
    assert client.services() == [] and client.models() == []
