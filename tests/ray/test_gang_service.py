"""A service whose ranks are on two nodes, each of which has room for one of them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import psutil
import pytest

import llmos
from llmos.infer.local import LocalEngine
from llmos.infer.request import GenerationRequest, SamplingParams, TokenEvent
from tests.chaos.runs import extra_node
from tests.ray.test_jobs import LOOPBACK, named, nothing_is_held, until
from tests.support import listening
from tests.unit.infer.small import write_model

PROMPT, TOKENS = "def step(self, n):", 24


@pytest.fixture(scope="module")
def cpus(cluster: llmos.Client) -> Iterator[int]:
    """The cluster has two nodes, each with so many CPUs."""
    (head,) = cluster.status()["nodes"]
    count = int(head["total"]["cpus"])
    # short: Ray's sockets lie below it
    with (
        tempfile.TemporaryDirectory(prefix="n", dir="/tmp", ignore_cleanup_errors=True) as directory,
        extra_node(cluster, Path(directory), count),
    ):
        yield count


def alone(model_dir: Path) -> str:
    """What one process says."""
    engine = LocalEngine(model_dir, dtype="float32", runner="torch", threads=1)
    prompt = tuple(engine.tokenizer.encode(PROMPT, add_special_tokens=True))
    asked = GenerationRequest("alone", prompt, SamplingParams(TOKENS, temperature=0.0))

    async def answer() -> TokenEvent:
        return reduce(TokenEvent.then, [event async for event in engine.generate(asked)])

    try:
        return asyncio.run(answer()).text
    finally:
        engine.close()


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_a_service_spans_two_nodes_and_loses_a_rank(cluster: llmos.Client, cpus: int, tmp_path: Path) -> None:
    expected = alone(write_model(tmp_path))
    assert expected
    model = cluster.import_model("staged", tmp_path)
    each = llmos.Resources(cpus=cpus)
    cluster.serve(
        llmos.Service(name="staged", model=model.ref, mesh=llmos.Mesh(pp=2), resources=each, threads=1, dtype="float32")
    )
    cluster.wait_service("staged", timeout_s=100)
    assert cluster.complete("staged", PROMPT, max_tokens=TOKENS, temperature=0) == expected
    nodes = cluster.status()["nodes"]
    assert [(node["used"]["cpus"], node["foreign"]["cpus"]) for node in nodes] == [(cpus, 0)] * 2
    assert listening(Path.home()) <= LOOPBACK
    ranks = named("RankActor")
    assert len(ranks) == 2 and len({rank.ppid() for rank in ranks}) == 2  # each the child of its raylet

    for lose in (psutil.Process.kill, psutil.Process.suspend):
        ranks = named("RankActor")
        lose(ranks[1])
        until(lambda: not cluster.service("staged").is_ready, timeout_s=40)
        cluster.wait_service("staged", timeout_s=100)
        assert cluster.complete("staged", PROMPT, max_tokens=TOKENS, temperature=0) == expected
        assert len(named("RankActor")) == 2 and not set(ranks) & set(named("RankActor"))

    cluster.remove_service("staged")
    until(lambda: nothing_is_held(cluster) and not named("RankActor"))
    cluster.remove_model(model.ref)
