from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmos.control.control import Control
from llmos.control.loop import Loop
from llmos.core.types import Action, AttemptPhase, Job, Node, NodeKind, Resources, Service, Snapshot, Verb
from llmos.errors import ClusterError
from llmos.sim.cluster import Outcome
from tests.unit.control.world import World

FAILED = Outcome(3.0, AttemptPhase.FAILED, error="boom")


class Crash(BaseException):
    """SIGKILL: nobody catches it, nothing is cleaned up after it."""


def story(world: World, job: str) -> list[str]:
    return [event["what"] for event in world.control.job_events(job)]


def test_a_job_waits_runs_and_succeeds(world: World) -> None:
    job = world.control.submit_job(world.spec())
    assert (job["phase"], job["reason"]) == ("queued", "the cluster has not been looked at yet")
    world.loop.tick()
    assert world.control.get_job("coder")["phase"] == "starting"
    world.run(2)
    job = world.control.get_job("coder")
    assert (job["phase"], job["attempt"], job["started_at"], job["reason"]) == ("running", 1, 0.0, "")
    world.run(10)
    job = world.control.get_job("coder")
    assert (job["phase"], job["model"], job["attempts"]) == ("succeeded", "coder@1", 1)
    assert job["ended_at"] == pytest.approx(11.0)


def test_who_does_not_fit_is_told_why(world: World) -> None:
    first = world.control.submit_job(world.spec(resources={"cpus": 3}))
    second = world.control.submit_job(world.spec(resources={"cpus": 2}))
    never = world.control.submit_job(world.spec(resources={"cpus": 64}))
    world.run(2)
    assert world.control.get_job(first["id"])["phase"] == "running"
    assert "needs 1 bundle of 2 CPUs" in world.control.get_job(second["id"])["reason"]
    assert "cannot start on this cluster" in world.control.get_job(never["id"])["reason"]
    assert set(world.control.status()["waiting"]) == {second["id"], never["id"]}


def test_failures_are_retried_and_told(world: World) -> None:
    world.outcomes["coder-1"] = [FAILED, FAILED]
    world.control.submit_job(world.spec(retries=2))
    world.run(5)
    job = world.control.get_job("coder")
    assert job["phase"] == "queued" and "next attempt in" in job["reason"]
    world.run(30)
    assert world.control.get_job("coder")["phase"] == "succeeded"
    assert story(world, "coder").count("starting") == 3
    world.outcomes["coder-2"] = [FAILED]
    world.control.submit_job(world.spec(retries=0))
    world.run(6)
    job = world.control.get_job("coder-2")
    assert job["phase"] == "failed" and "attempt 1: boom" in job["reason"] and job["model"] is None


def test_a_cancelled_job_ends(world: World) -> None:
    world.control.submit_job(world.spec())
    world.run(3)
    assert world.control.cancel_job("coder")["reason"] == "cancel requested"
    world.run(3)
    job = world.control.get_job("coder")
    assert (job["phase"], job["reason"]) == ("cancelled", "cancelled")
    assert world.control.cancel_job("coder") == job  # what has ended stays as it is
    assert story(world, "coder") == ["submitted", "starting", "running", "cancel_requested", "stopping", "cancelled"]


def test_a_launch_that_was_lost_is_made_again_under_its_number(world: World) -> None:
    world.cluster.lost_launches = 2
    world.control.submit_job(world.spec())
    world.run(20)
    job = world.control.get_job("coder")
    assert (job["phase"], job["attempts"]) == ("succeeded", 1)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(crashes=st.sets(st.integers(1, 40), max_size=8))
def test_jobs_run_once_whenever_the_control_module_is_killed(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, crashes: set[int]
) -> None:
    world = World(tmp_path_factory.mktemp("state"), tokenizer)
    step = iter(range(1, 10_000))

    def dying(method: Callable[..., object]) -> Callable[..., object]:
        """May die before and after each call."""

        def run(*args: object, **keywords: object) -> object:
            if next(step) in crashes:
                raise Crash
            answer = method(*args, **keywords)
            if next(step) in crashes:
                raise Crash
            return answer

        return run

    def start() -> None:
        world.open()
        for owner, method in ((world.store, "record"), (world.registry, "register"), (world.store.models, "add")):
            setattr(owner, method, dying(getattr(owner, method)))

    setattr(world.cluster, "apply", dying(world.cluster.apply))  # noqa: B010  # mypy: not an assignment to a method
    start()
    ids = [world.control.submit_job(world.spec(f"j{i}"))["id"] for i in range(4)]
    for _ in range(30):
        try:
            world.run(1)
        except Crash:
            start()
    jobs = [world.control.get_job(id) for id in ids]
    assert [(job["phase"], job["attempts"]) for job in jobs] == [("succeeded", 1)] * 4
    assert {number for _, number in world.cluster._runs} == {1} and len(world.cluster._runs) == 4
    assert [job["model"] for job in jobs] == [f"j{i}@1" for i in range(4)]
    assert sorted(path.name for path in world.layout.models.glob("*/*")) == ["1"] * 4
    for id in ids:
        assert story(world, id)[0] == "submitted" and story(world, id).count("succeeded") == 1


def test_a_cluster_that_cannot_be_seen_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.control.submit_job(world.spec())
    world.run(3)

    def blind(_jobs: Sequence[Job], _services: Sequence[Service]) -> Snapshot:
        raise ClusterError("the GCS is away")

    monkeypatch.setattr(world.cluster, "observe", blind)
    before = world.control.get_job("coder")
    world.run(5)
    assert world.control.get_job("coder") == before
    status = world.control.status()
    assert "the GCS is away" in status["control"]["error"] and len(status["nodes"]) == 1
    monkeypatch.undo()
    world.run(10)
    assert world.control.get_job("coder")["phase"] == "succeeded" and world.control.status()["control"]["error"] == ""


@pytest.mark.parametrize("error", [ClusterError("no room in the GCS"), RuntimeError("a bug")])
def test_an_action_that_fails_keeps_no_other_from_being_carried_out(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    honest = world.cluster.apply

    def fail_for_one(action: Action, subject: Job | Service | None = None) -> None:
        if action.id == "a-1" and action.verb is Verb.START:
            raise error
        honest(action, subject)

    monkeypatch.setattr(world.cluster, "apply", fail_for_one)
    for name in ("a", "b"):
        world.control.submit_job(world.spec(name))
    world.run(15)
    assert [world.control.get_job(name)["phase"] for name in ("a", "b")] == ["starting", "succeeded"]
    failures = [event for event in world.control.job_events("a") if event["what"] == "start_failed"]
    assert failures and str(error) in failures[0]["why"]
    monkeypatch.undo()
    world.run(15)
    assert world.control.get_job("a")["phase"] == "succeeded" and world.control.get_job("a")["attempts"] == 1


def test_a_disk_that_is_full_for_a_while_costs_no_trained_model(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = world.control.submit_job(world.spec())["id"]
    honest = world.registry.register

    def full(_job: str) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(world.registry, "register", full)
    world.run(20)
    assert world.control.get_job(job)["phase"] == "running"
    told = [event for event in world.control.job_events(job) if event["what"] == "register_failed"]
    assert len(told) == 1 and "No space left" in told[0]["why"]
    monkeypatch.setattr(world.registry, "register", honest)
    world.run(2)
    assert world.control.get_job(job)["phase"] == "succeeded" and world.control.get_job(job)["model"] == "coder@1"


def test_a_model_that_cannot_be_registered_fails_the_job(world: World) -> None:
    world.control.submit_job(world.spec())
    world.run(5)
    weights = world.layout.job("coder-1").export / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    world.run(10)
    job = world.control.get_job("coder")
    assert job["phase"] == "failed" and job["model"] is None
    assert "its model could not be registered" in job["reason"] and "truncated" in job["reason"]
    assert world.control.list_models() == []


def test_quiet_ticks_write_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.outcomes["coder-1"] = [Outcome(1000.0)]
    world.control.submit_job(world.spec())
    world.run(5)
    monkeypatch.setattr(world.store, "record", lambda *_args, **_keywords: pytest.fail("wrote something"))
    world.run(5)


def test_the_loop_survives_a_bug_and_hears_nudges(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, calls = world.loop.tick, []

    def tick() -> None:
        calls.append(time.monotonic())
        if len(calls) == 1:
            raise ZeroDivisionError("a bug")
        honest()

    monkeypatch.setattr(world.loop, "tick", tick)
    threading.Thread(target=world.loop.run, args=(60.0,), daemon=True).start()
    while not calls:
        time.sleep(0.005)
    time.sleep(0.05)
    assert "ZeroDivisionError: a bug" in world.loop.sight.error
    world.loop.rest()
    world.control.submit_job(world.spec())  # nudges
    time.sleep(0.1)
    assert world.control.get_job("coder")["phase"] == "queued"
    assert "`llmos up` goes on" in world.control.status()["control"]["error"]
    world.loop.carry_on()
    deadline = time.monotonic() + 5
    while world.control.get_job("coder")["phase"] == "queued" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert world.control.get_job("coder")["phase"] == "starting"


class FakeFleet:
    """Nodes of 4 CPUs that are there a second after they were asked for, and go when they are not wanted."""

    def __init__(self, world: World) -> None:
        self.world, self.kind, self.away = world, NodeKind("big", Resources(cpus=4), most=2), False

    def kinds(self) -> tuple[NodeKind, ...]:
        return (self.kind,)

    def scale(self, wanted: Mapping[str, int]) -> None:
        if self.away:
            raise ClusterError("the autoscaler is away")
        nodes = self.world.cluster.nodes
        there = sorted(id for id, node in nodes.items() if node.kind)
        for id in there[wanted["big"] :]:
            del nodes[id]
        for number in range(len(there), wanted["big"]):
            nodes[f"big-{number}"] = Node(f"big-{number}", self.kind.total, kind="big")


def test_nodes_come_for_those_who_wait_and_go_after_them(world: World) -> None:
    fleet = FakeFleet(world)
    world.loop = Loop(world.store, world.registry, world.cluster, world.layout, fleet)
    world.control = Control(world.store, world.registry, world.loop, world.layout, world.clock)
    gang = {"workers": {"min": 3, "max": 3}, "resources": {"cpus": 4}, "batch_size": 6}
    world.control.submit_job(world.spec(**gang))
    world.loop.tick()
    assert "a node of kind big is to be started for it" in world.control.get_job("coder")["reason"]
    (kind,) = world.control.status()["kinds"]
    assert kind == {
        **{"name": "big", "there": 0, "wanted": 2, "fewest": 0, "most": 2},
        **{"trouble": "", "retry_s": 0.0},
    }
    fleet.away = True
    world.run(3)
    assert world.control.status()["control"]["error"] == "the autoscaler is away"
    assert world.control.get_job("coder")["phase"] == "running"  # on the nodes that are there
    fleet.away = False
    world.run(20)
    assert world.control.get_job("coder")["phase"] == "succeeded" and world.control.get_job("coder")["attempts"] == 1
    assert world.control.status()["control"]["error"] == ""
    assert [node.id for node in world.cluster.nodes.values()] == ["node-0"]


def test_why_no_node_comes_is_told(world: World) -> None:
    fleet = FakeFleet(world)
    fleet.kind = replace(fleet.kind, trouble="no capacity in eu-1", not_before=30.0)
    world.loop = Loop(world.store, world.registry, world.cluster, world.layout, fleet)
    world.control = Control(world.store, world.registry, world.loop, world.layout, world.clock)
    world.control.submit_job(world.spec(resources={"cpus": 4}, workers={"min": 2, "max": 2}))
    world.run(10)
    assert "no node of kind big for 20 s: no capacity in eu-1" in world.control.get_job("coder")["reason"]
    (kind,) = world.control.status()["kinds"]
    assert (kind["wanted"], kind["trouble"], kind["retry_s"]) == (0, "no capacity in eu-1", 20.0)
    world.run(30)
    assert world.control.get_job("coder")["phase"] in ("starting", "running")
