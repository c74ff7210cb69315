"""One local cluster for all tests of this tier, and the unbroken run that broken ones are compared with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import llmos
from tests.chaos.runs import History, history, job
from tests.support import running_cluster


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[llmos.Client]:
    with running_cluster(tmp_path_factory.mktemp("home")) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: llmos.Client) -> Iterator[None]:
    """A test that fails leaves its job: the next one must not wait for it."""
    yield
    for left in cluster.jobs():
        if not left.final:
            cluster.cancel(left.id)
            cluster.wait(left.id, timeout_s=120)


@pytest.fixture(scope="package")
def unbroken(cluster: llmos.Client) -> History:
    done = cluster.wait(cluster.submit(job("unbroken", workers=2)).id, timeout_s=400)
    assert (done.phase, done.attempts) == ("succeeded", 1)
    return history(cluster, done.id)
