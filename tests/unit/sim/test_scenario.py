"""Reading a scenario: all that is wrong with it is said at once. Drawing one: every GPU is one job's at a time."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from llmos.core.types import Strategy
from llmos.errors import SpecError
from llmos.sim.chart import chart, lanes, looks_of
from llmos.sim.chronicle import Block
from llmos.sim.picture import COLOURS, OTHERS
from llmos.sim.rehearsal import play
from llmos.sim.scenario import MOST_JOBS, read
from llmos.sim.section import duration_s

NODES = {"nodes": [{"count": 2, "gpus": 4}]}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("20m", 1200), ("1h30m", 5400), ("1.5h", 5400), ("1d", 86400), ("", None), ("soon", None)],
)
def test_times(text: str, seconds: float | None) -> None:
    assert duration_s(text) == seconds


def test_what_is_not_said_has_a_default() -> None:
    (work,) = read(NODES | {"jobs": [{"name": "a", "runs": "10m"}]}).works
    assert (work.at_s, work.run_s, work.checkpoint_s, work.job.estimate_s) == (0, 600, math.inf, 600)
    assert [bundle.gpus for bundle in work.job.gang.bundles] == [1]


def test_a_job_has_all_that_a_gang_has() -> None:
    asked = {"name": "a", "runs": 60, "workers": {"min": 2, "max": 4}, "gpus": 2, "strategy": "spread"}
    asked |= {"topology": "rack", "labels": {"kind": "H100|MI300"}, "expected": None, "count": 2, "every": "1m"}
    first, second = read(NODES | {"jobs": [asked]}).works
    assert [len(gang.bundles) for gang in first.job.gangs] == [2, 3, 4]
    assert {(gang.strategy, gang.topology, gang.labels) for gang in first.job.gangs} == {
        (Strategy.SPREAD, "rack", (("kind", "H100|MI300"),))
    }
    assert (first.job.id, second.job.id, second.at_s, first.job.estimate_s) == ("a-0", "a-1", 60, None)


JOB = {"name": "a", "runs": "1m"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "scenario: expected a mapping of title"),
        ({}, "no nodes and no kinds of node"),
        (NODES | {"job": []}, "`job` is not known; did you mean `jobs`?"),
        (NODES | {"order": "random"}, "order is random: expected one of fifo, shortest"),
        (NODES | {"jobs": [{"name": "a"}]}, "jobs[0]: runs is None: expected a time such as 90s"),
        (NODES | {"jobs": [JOB | {"at": "later"}]}, "at is later: expected a time"),
        (NODES | {"jobs": [JOB | {"preemptible": "no"}]}, "preemptible is no: expected true or false"),
        (NODES | {"jobs": [JOB, JOB]}, "jobs[1]: name is a, as before"),
        (NODES | {"jobs": [JOB | {"after": ["b"]}]}, "after names b: expected a job that is listed before"),
        (NODES | {"jobs": [JOB | {"workers": {"min": 3, "max": 2}}]}, "min is 3, max 2"),
        (NODES | {"jobs": [JOB | {"count": MOST_JOBS}, JOB | {"name": "b"}]}, "llmos simulate jobs` replays"),
        (NODES | {"jobs": [JOB | {"count": MOST_JOBS + 1}]}, f"expected at most {MOST_JOBS}"),
        (NODES | {"jobs": [JOB | {"labels": "fast"}]}, "labels: expected a mapping"),
        (NODES | {"jobs": [JOB], "tenants": [{"name": "t"}]}, "a is of tenant default: expected one of t"),
        (NODES | {"tenants": [{"name": "t", "parent": "u"}]}, "t has the parent u"),
        (NODES | {"services": [{"name": "s", "replicas": {"noon": 1}}]}, "replicas has noon: 1"),
        (NODES | {"services": [{"name": "s", "replicas": 3}]}, "replicas: expected a mapping"),
        (NODES | {"faults": [{"node": "node-7"}]}, "no node node-7: expected one of node-0, node-1"),
        (NODES | {"nodes": [{"count": 0}]}, "count is 0: expected a number of at least 1"),
    ],
)
def test_what_is_wrong_is_said(wrong: Any, message: str) -> None:
    with pytest.raises(SpecError) as told:
        read(wrong)
    assert message in str(told.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(SpecError) as told:
        read({"hours": "two", "jobs": [{"name": "a"}], "nodes": {}})
    assert all(part in str(told.value) for part in ("hours is two", "runs is None", "nodes: expected a list"))


def _block(owner: str, gpus: float, start_s: float, end_s: float) -> Block:
    return Block(owner, "n", gpus, start_s, end_s)


def test_a_gpu_is_one_jobs_at_a_time() -> None:
    blocks = [_block("a", 2, 0, 10), _block("b", 1, 0, 30), _block("c", 1, 5, 10), _block("d", 3, 10, 20)]
    found = {block.owner: parts for block, parts in lanes(blocks, 4)}
    assert found == {"a": [(0, 2)], "b": [(2, 3)], "c": [(3, 4)], "d": [(0, 2), (3, 4)]}
    halves = {block.owner: parts for block, parts in lanes([_block(id, 0.5, 0, 9) for id in "ab"], 1)}
    assert halves == {"a": [(0, 0.5)], "b": [(0.5, 1)]}


def test_the_picture_names_jobs_nodes_and_those_who_wait() -> None:
    jobs = [{"name": "<a>", "runs": "30m", "workers": 8}, {"name": "late", "runs": "30m", "at": "5m"}]
    jobs += [{"name": "cpu", "runs": "10m", "gpus": 0}]
    asked = read(NODES | {"title": "a & b", "hours": 1, "jobs": jobs})
    told = play(asked)
    document = ElementTree.fromstring(chart(told, looks_of(asked, told)))  # noqa: S314 - what we have just written
    texts = [text.text for text in document.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a & b", "node-0", "node-1", "<a>", "late", "waiting:", "60 min"} <= set(texts)
    assert texts.count("<a>") == 3  # on both nodes, and what its colour means


def test_jobs_beyond_the_last_colour_share_one() -> None:
    jobs = [{"name": f"job{i}", "runs": "1h"} for i in range(12)]
    asked = read(NODES | {"jobs": jobs})
    told = play(asked)
    document = ElementTree.fromstring(chart(told, looks_of(asked, told)))  # noqa: S314 - what we have just written
    squares = [box for box in document.iter("{http://www.w3.org/2000/svg}rect") if box.get("width") == "10"]
    assert [box.get("fill") for box in squares] == [*COLOURS, OTHERS]


def test_many_who_wait_share_a_row() -> None:
    asked = read(NODES | {"jobs": [{"name": "all", "count": 40, "runs": "1h"}]})
    told = play(asked)
    document = chart(told, looks_of(asked, told))
    rows = re.findall(r'font-size="10">([^<]*)<', document)
    assert rows == ["all"]


def test_a_node_may_be_drained_and_lost_and_come_back() -> None:
    faults = [{"node": "node-0", "at": "10m", "for": "10m", "what": "drained"}]
    faults += [{"node": "node-1", "at": "30m", "for": "5m"}, {"node": "node-1", "at": "31m", "for": "9m"}]
    jobs = [{"name": "a", "workers": 4, "runs": "50m", "checkpoint": "5m"}]
    told = play(read(NODES | {"hours": 2, "jobs": jobs, "faults": faults}))
    assert [(block.node, block.failed) for block in told.blocks] == [
        ("node-0", False),
        ("node-1", True),
        ("node-0", False),
    ]
    assert [(span.of, span.start_s, span.end_s) for span in told.shut] == [("node-0", 600, 1200)]
    assert told.lives["a"].failures == 0 and told.lives["a"].phase.value == "succeeded"


def test_what_is_not_over_at_the_end_is_open() -> None:
    jobs = [{"name": "a", "workers": 8, "runs": "9h"}, {"name": "b", "runs": "1m"}]
    told = play(read(NODES | {"hours": 1, "jobs": jobs}))
    assert (told.lives["a"].phase.value, told.lives["a"].ended_s) == ("running", None)
    assert (told.lives["b"].phase.value, told.lives["b"].waited_s) == ("queued", 3600)
