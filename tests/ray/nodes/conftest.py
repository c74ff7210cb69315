"""One cluster of up to four nodes for all tests of this package, alone: it comes before that of the other tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import llmos
from tests.ray.nodes.runs import NODES, Figure, Run, job, nodes, until
from tests.support import running_cluster


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[llmos.Client]:
    with running_cluster(tmp_path_factory.mktemp("home"), "--autoscale-local", str(NODES)) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: llmos.Client) -> Iterator[None]:
    """A test that fails leaves its jobs and services: the next one must not wait for them."""
    yield
    for left in cluster.jobs():
        if not left.final:
            cluster.cancel(left.id)
            cluster.wait(left.id, timeout_s=60)
    for service in cluster.services():
        cluster.remove_service(service.name)


@pytest.fixture(scope="package")
def figure(pytestconfig: pytest.Config) -> Figure:
    """Shows how long something took."""
    terminal = pytestconfig.pluginmanager.getplugin("terminalreporter")
    return lambda what, seconds: terminal.write_line(f"\n{what}: {seconds:.1f} s")


@pytest.fixture(scope="package")
def gang(cluster: llmos.Client, figure: Figure) -> Run:
    """A job of a worker on each of four nodes, which nobody disturbed; it came to a cluster of one node."""
    id = cluster.submit(job("gang", NODES)).id
    figure("submit of a gang of four to four nodes", until(lambda: nodes(cluster) == NODES, timeout_s=150))
    done = cluster.wait(id, timeout_s=120)
    return Run(done, [event.why for event in cluster.events(id) if event.what == "starting"])
