"""What people are told of the cluster, of the queue and of one job."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llmos.control.drains import FORGET_S
from llmos.core.types import Node, Resources
from llmos.errors import NotFoundError, UsageError
from llmos.sim.cluster import Outcome
from tests.unit.control.world import World

LONG = Outcome(10_000.0)


@pytest.fixture
def busy(world: World) -> World:
    """A node of 4 CPUs: `coder-1` holds 3 of them, `coder-2` and `coder-3` wait for 2 each."""
    world.outcomes["coder-1"] = [LONG]
    for cpus in (3, 2, 2):
        world.control.submit_job(world.spec(resources={"cpus": cpus}))
    world.run(3)
    return world


def test_a_job_view_says_what_it_asks_for_and_where_it_stands(busy: World) -> None:
    third, second, first = busy.control.list_jobs()
    assert [job["place"] for job in (first, second, third)] == [None, 1, 2]
    assert third["gang"] == {"text": "1 bundle of 2 CPUs", "bundles": 1, "cpus": 2.0, "gpus": 0.0}
    assert (third["tenant"], third["priority"], third["estimated_start"]) == ("default", 0, None)
    assert "needs 1 bundle of 2 CPUs; 1 CPU free of 4; behind coder-2" in third["reason"]
    assert first["reason"] == "" and first["gang"]["cpus"] == 3


def test_jobs_of_one_state_or_tenant(busy: World) -> None:
    assert [job["id"] for job in busy.control.list_jobs(state="running")] == ["coder-1"]
    assert [job["id"] for job in busy.control.list_jobs(tenant="default", state="queued")] == ["coder-3", "coder-2"]
    assert busy.control.list_jobs(tenant="nobody") == []
    with pytest.raises(UsageError, match="no job is ever `waiting`: expected one of queued, starting, running"):
        busy.control.list_jobs(state="waiting")


def test_the_estimate_of_a_start(world: World) -> None:
    world.outcomes["coder-1"] = [LONG]
    world.control.submit_job(world.spec(resources={"cpus": 3}, max_runtime=600))
    world.control.submit_job(world.spec(resources={"cpus": 2}))
    world.run(3)
    estimate = world.control.get_job("coder-2")["estimated_start"]
    assert estimate == {"p50": 600.0, "p90": 600.0}
    (waiting,) = world.control.list_queue()["jobs"]
    assert waiting["estimated_start"] == estimate
    assert world.control.explain_job("coder-2")["next_release"] == {"at": 600.0, "job": "coder-1"}


def test_a_description_has_the_nodes_the_outlook_and_the_story(busy: World) -> None:
    runs, waits = busy.control.describe_job("coder-1"), busy.control.describe_job("coder-2")
    assert runs["nodes"] == ["node-0"] and "quarantined" not in runs
    assert [event["what"] for event in runs["events"]] == ["submitted", "starting", "running"]
    assert (waits["nodes"], waits["turn"], waits["place"], waits["quarantined"]) == ([], 1, 1, {})
    assert "1 CPU free of 4" in waits["reason"] and waits["directory"]
    assert json.loads(json.dumps(waits)) == waits
    busy.control.cancel_job("coder-2")
    assert busy.control.describe_job("coder-2")["reason"] == "cancel requested"
    assert busy.control.explain_job("coder-2")["reason"] == "it does not wait: it is being cancelled"


def test_an_explanation_is_that_of_the_plan(busy: World) -> None:
    told = busy.control.explain_job("coder-2")
    assert [way["text"] for way in told["ways"]] == [
        "if it asked for 1 CPU instead of 2",
        "if its priority were 1 instead of 0: coder-1 would have to end for it",
        "if coder-1 ended",
        "if one more node like node-0 (4 CPUs and 8 GiB) joined",
    ]
    assert (told["turn"], told["place"], told["phase"], told["limited"], told["error"]) == (1, 1, "queued", "", "")
    assert json.loads(json.dumps(told)) == told
    assert busy.control.explain_job("coder-1")["reason"] == "it does not wait: it runs"
    fresh = busy.control.submit_job(busy.spec())["id"]
    told = busy.control.explain_job(fresh)
    assert told["ways"] == [] and told["reason"] == "it was submitted this moment: ask again in a second"


def test_the_queue_in_the_order_of_turns(busy: World) -> None:
    queue = busy.control.list_queue()
    assert [(job["turn"], job["id"], job["tenant"]) for job in queue["jobs"]] == [
        (1, "coder-2", "default"),
        (2, "coder-3", "default"),
    ]
    assert (queue["total"], queue["quarantined"], queue["drained"], queue["error"]) == (2, {}, {}, "")
    assert len(busy.control.list_queue(limit=1)["jobs"]) == 1 and busy.control.list_queue(limit=1)["total"] == 2
    assert busy.control.list_queue(tenant="default") == queue
    with pytest.raises(NotFoundError, match="no tenant `nobody` has jobs: default has"):
        busy.control.list_queue(tenant="nobody")


def test_the_status_counts_what_is_used_and_what_is_left(busy: World) -> None:
    status = busy.control.status()
    nothing = {"lent": 0.0, "foreign": 0.0}
    assert status["cpus"] == {"total": 4, "used": 3, "free": 1, "closed": 0.0, **nothing}
    assert status["gpus"]["total"] == 0
    assert status["queues"] == [
        {
            **{"tenant": "default", "running": 1, "waiting": 2, "cpus": 3.0, "gpus": 0.0},
            **{"share": 0.75, "guaranteed": 1.0},
        }
    ]
    assert list(status["waiting"]) == ["coder-2", "coder-3"]
    (node,) = status["nodes"]
    assert (node["state"], node["why"], node["drained"]) == ("alive", "", False)


def test_a_drained_node_is_left_and_takes_nothing_until_it_is_let_go(tmp_path: object, tokenizer: object) -> None:
    world = World(tmp_path / "state", tokenizer, nodes=2)  # type: ignore[operator, arg-type]
    world.outcomes["coder-1"] = [LONG, LONG]
    world.control.submit_job(world.spec())
    world.run(3)
    (here,) = world.control.describe_job("coder-1")["nodes"]
    told = world.control.drain_node(here, "its fan is loud")
    assert (told["drained"], told["why"], told["jobs"], told["services"]) == (True, "its fan is loud", ["coder-1"], [])
    assert [event["what"] for event in told["events"]] == ["drained"]
    world.run(5)
    job = world.control.describe_job("coder-1")
    assert job["phase"] == "running" and job["attempts"] == 2 and job["nodes"] != [here]
    assert f"moves: node {here} is about to go" in [event["why"] for event in job["events"]]
    state = {node["id"]: (node["state"], node["why"]) for node in world.control.status()["nodes"]}
    assert state[here] == ("draining", "its fan is loud")
    assert world.control.status()["cpus"]["closed"] == 4
    assert world.control.drain_node(here)["jobs"] == []  # the same again: nothing is left, the reason stays
    world.open()  # as after a crash
    world.run(1)
    assert world.control.list_queue()["drained"] == {here: "its fan is loud"}
    told = world.control.undrain_node(here)
    assert (told["drained"], told["since"]) == (False, None)
    assert [event["what"] for event in told["events"]] == ["drained", "undrained"]
    world.run(1)
    assert world.control.status()["cpus"]["closed"] == 0


def test_nodes_are_named_by_the_beginning_of_their_ids(world: World) -> None:
    world.loop.tick()
    assert world.control.drain_node("node")["id"] == "node-0"
    world.cluster.nodes["node-1"] = Node("node-1", Resources(cpus=4))
    world.loop.tick()
    with pytest.raises(UsageError, match="`node` may be node-0, node-1: expected the beginning of one node's id"):
        world.control.drain_node("node")
    with pytest.raises(NotFoundError, match="no node `moon`: the cluster has node-0, node-1"):
        world.control.undrain_node("moon")


def test_before_the_first_look_no_node_is_known(world: World) -> None:
    with pytest.raises(NotFoundError, match="no node `node-0`: the cluster has not been looked at yet"):
        world.control.drain_node("node-0")


def test_a_node_that_is_gone_for_good_is_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.cluster.nodes["node-1"] = Node("node-1", Resources(cpus=4))
    world.loop.tick()
    world.control.drain_node("node-1")
    gone = world.cluster.nodes.pop("node-1")
    world.run(FORGET_S / 2, step_s=100)
    world.cluster.nodes["node-1"] = gone  # it was out of reach for a while
    world.loop.tick()
    assert world.control.status()["nodes"][1]["state"] == "draining"
    world.cluster.nodes.pop("node-1")
    world.loop.tick()
    monkeypatch.setattr(world.store.drains, "remove", lambda *_args: pytest.fail("wrote something"))
    world.run(FORGET_S - 100, step_s=100)
    assert list(world.control.list_queue()["drained"]) == ["node-1"]
    monkeypatch.undo()
    world.run(200, step_s=100)
    assert world.control.list_queue()["drained"] == {}
    assert [event["what"] for event in world.store.events.of("node", "node-1")] == ["drained", "forgotten"]


def test_a_second_reason_takes_the_place_of_the_first(world: World) -> None:
    world.loop.tick()
    for why in ("disk", "", "disk", "fan"):
        told = world.control.drain_node("node-0", why)
    assert told["why"] == "fan" and [event["why"] for event in told["events"]] == ["disk", "fan"]
    for _ in range(2):
        told = world.control.undrain_node("node-0")
    assert [event["what"] for event in told["events"]] == ["drained", "drained", "undrained"]


def test_nodes_in_quarantine_are_named(busy: World) -> None:
    sight = busy.loop.sight
    busy.loop.sight = replace(sight, plan=replace(sight.plan, quarantined={"node-0": "2 jobs failed on it"}))
    assert busy.control.status()["nodes"][0]["state"] == "quarantined"
    assert busy.control.describe_job("coder-2")["quarantined"] == {"node-0": "2 jobs failed on it"}
    assert busy.control.list_queue()["quarantined"] == {"node-0": "2 jobs failed on it"}
