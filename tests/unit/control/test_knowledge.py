"""What the control loop learns while jobs run, and tells ``plan``."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmos.control import knowledge
from llmos.control.progress import saved_at, speed
from llmos.core.types import AttemptPhase, Job, Node, Order, Resources, Snapshot
from llmos.sim.cluster import Outcome
from tests.unit.control.world import World


def told(world: World, name: str) -> Job:
    """Job ``name`` as the last plan was told it."""
    return next(job for job in world.loop.sight.desired.jobs if job.id.rpartition("-")[0] == name)


def save(world: World, job: str, step: int, at: float) -> Path:
    manifest = world.layout.job(job).checkpoints / f"step-{step:08d}" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    os.utime(manifest, (at, at))
    return manifest


def write_metrics(world: World, job: str, attempt: int, *rows: dict[str, Any]) -> None:
    path = world.layout.job(job).attempt(attempt).metrics
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_run_times_are_learned_by_tenant_and_name(world: World) -> None:
    for seconds in (10.0, 20.0, 30.0):
        job = world.control.submit_job(world.spec("short"))["id"]
        world.outcomes[job] = [Outcome(seconds)]
        world.run(seconds + 5)
    assert world.control.get_job("short")["phase"] == "succeeded"
    for _ in range(2):
        world.control.submit_job(world.spec("short", resources={"cpus": 3}))
        world.control.submit_job(world.spec("short", resources={"cpus": 3}, expected_runtime="1h"))
        world.run(1)
        learned, declared = world.loop.sight.desired.jobs[-2:]
        assert (learned.estimate_s, learned.estimate_high_s) == (pytest.approx(21, abs=2), pytest.approx(31, abs=2))
        assert (declared.estimate_s, declared.estimate_high_s) == (3600.0, None)
        world.open()  # the next time around, from the store


def test_a_job_that_waits_has_an_estimated_start(world: World) -> None:
    world.control.submit_job(world.spec("a", resources={"cpus": 4}, expected_runtime=100))
    waits = world.control.submit_job(world.spec("b", resources={"cpus": 4}, expected_runtime=100))["id"]
    world.run(3)
    p50, p90 = world.loop.sight.plan.estimates[waits]
    assert p50 == pytest.approx(100, abs=2) and p90 >= p50


def test_what_is_expected_of_those_that_wait_follows_once_in_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.outcomes["first-1"] = [Outcome(5.0)]
    world.control.submit_job(world.spec("first", resources={"cpus": 4}))
    world.control.submit_job(world.spec("long", resources={"cpus": 4}, preemptible=False))
    world.outcomes["long-1"] = [Outcome(1000.0)]
    world.run(2)
    world.control.submit_job(world.spec("late", resources={"cpus": 4}))
    world.run(10)
    assert told(world, "late").estimate_s is None
    world.run(knowledge.REVISE_EVERY_S)
    assert told(world, "late").estimate_s == pytest.approx(6.0, abs=1.5)


def test_jobs_of_which_nothing_changes_are_the_very_same_values(world: World) -> None:
    world.outcomes["runs-1"] = [Outcome(1000.0)]
    world.control.submit_job(world.spec("runs", resources={"cpus": 4}))
    world.control.submit_job(world.spec("waits", resources={"cpus": 4}))
    world.run(3)
    before = world.loop.sight.desired.jobs
    world.run(20)
    assert world.loop.sight.desired.jobs is before
    world.control.submit_job(world.spec("more", resources={"cpus": 4}))
    world.run(1)
    after = world.loop.sight.desired.jobs
    assert len(after) == 3 and all(a is b for a, b in zip(before, after, strict=False))
    world.control.cancel_job("waits")
    world.loop.tick()
    assert world.loop.sight.desired.jobs[0] is before[0]


def test_it_is_known_when_a_running_job_was_saved_last(world: World) -> None:
    world.outcomes["coder-1"] = [Outcome(1000.0)]
    world.control.submit_job(world.spec())
    world.run(3)
    assert told(world, "coder").checkpointed_at is None
    save(world, "coder-1", 100, 4.0)
    world.run(6)
    assert told(world, "coder").checkpointed_at == 4.0
    newest = save(world, "coder-1", 200, 9.0)
    (newest.parent.parent / ".step-00000300.tmp").mkdir()  # one that is being written
    (newest.parent.parent / "step-00000050").mkdir()  # one that is being removed
    world.run(6)
    assert told(world, "coder").checkpointed_at == 9.0
    assert saved_at(world.layout.job("nobody").checkpoints) is None


def test_victims_are_those_that_lose_least(world: World) -> None:
    for name in ("a", "b"):
        world.outcomes[f"{name}-1"] = [Outcome(1000.0)] * 2
        world.control.submit_job(world.spec(name, resources={"cpus": 2}))
    world.run(50)
    save(world, "a-1", 100, 48.0)
    save(world, "b-1", 100, 20.0)
    world.run(6)
    world.control.submit_job(world.spec("high", priority=1, resources={"cpus": 2}))
    world.run(4)
    assert [world.control.get_job(name)["phase"] for name in ("a", "b", "high")] == ["queued", "running", "running"]


def test_a_node_that_kills_jobs_is_closed_also_after_a_restart(world: World) -> None:
    world.cluster.nodes = {f"n{i}": Node(f"n{i}", Resources(cpus=1)) for i in range(4)}
    world.run(1)
    for name in ("a", "b"):
        failed = Outcome(2.0, AttemptPhase.FAILED, error="ECC")
        world.outcomes[f"{name}-1"] = [failed]
        world.control.submit_job(world.spec(name, retries=0))
        world.run(6)
    (node,) = {failure.nodes for failure in world.loop.sight.desired.failures}
    assert set(world.loop.sight.plan.quarantined) == set(node)
    world.open()
    world.run(1)
    assert set(world.loop.sight.plan.quarantined) == set(node)
    world.run(4000, step_s=100.0)
    assert world.loop.sight.plan.quarantined == {} and world.loop.sight.desired.failures == ()


def test_what_would_fail_anywhere_is_no_nodes_fault(world: World) -> None:
    world.outcomes["a-1"] = [Outcome(2.0, AttemptPhase.FAILED, error="bad data", retry=False)]
    world.control.submit_job(world.spec("a"))
    world.run(6)
    assert world.control.get_job("a")["phase"] == "failed" and world.loop.sight.desired.failures == ()
    assert world.store.jobs.failures(10) == []


def test_speed_and_cost_of_a_resize_are_measured_and_kept(world: World) -> None:
    world.outcomes["wide-1"] = [Outcome(1000.0)] * 9
    fields = {"workers": {"min": 2, "max": 4, "grow_every": 20}, "batch_size": 4}
    world.control.submit_job(world.spec("wide", **fields))
    world.control.submit_job(world.spec("beside", resources={"cpus": 1}))
    world.run(3)
    assert told(world, "wide").placement == ("node-0", "node-0")
    steps = [{"step": i, "tokens_per_s": 100.0 + i, "step_s": 1.0, "time_s": 7.0 + i} for i in range(1, 6)]
    write_metrics(world, "wide-1", 1, *steps)
    world.run(6)
    assert told(world, "wide").resize_s == pytest.approx(7.0)  # from the start until the first step began
    world.run(30)
    grown = told(world, "wide")
    assert len(grown.placement) == 4 and grown.goodput == ((2, 103.0),)
    assert grown.resize_s > 7.0  # it also took a while to end
    world.open()
    world.run(1)
    assert told(world, "wide").goodput == ((2, 103.0),)


def test_the_speed_of_what_runs_is_known_before_it_ends(world: World) -> None:
    world.outcomes["wide-1"] = [Outcome(1000.0)] * 9
    world.control.submit_job(world.spec("wide", workers={"min": 2, "max": 4, "grow_every": 900}, batch_size=4))
    world.control.submit_job(world.spec("beside", resources={"cpus": 1}))
    world.run(3)
    fast = [{"step": i, "tokens_per_s": 100.0, "step_s": 1.0, "time_s": 7.0 + i} for i in range(1, 6)]
    write_metrics(world, "wide-1", 1, *fast)
    world.run(6)
    before = told(world, "wide")
    assert before.goodput == ((2, 100.0),)
    write_metrics(world, "wide-1", 1, *({**row, "tokens_per_s": 104.0} for row in fast))
    world.run(6)
    assert told(world, "wide") is before  # about as fast
    write_metrics(world, "wide-1", 1, *({**row, "tokens_per_s": 120.0} for row in fast))
    world.run(6)
    assert told(world, "wide").goodput == ((2, 120.0),)


def test_late_estimates_become_more_careful_when_they_are_not_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knowledge, "PROMISE_EVERY_S", 0.0)
    world.outcomes["a-1"] = [Outcome(300.0)]
    world.control.submit_job(world.spec("a", resources={"cpus": 4}, expected_runtime=100))
    waits = world.control.submit_job(world.spec("b", resources={"cpus": 4}, expected_runtime=100))["id"]
    gone = world.control.submit_job(world.spec("c", resources={"cpus": 4}, expected_runtime=100))["id"]
    world.run(3)
    assert world.loop.sight.desired.caution == 1.0 and world.loop.sight.plan.estimates.keys() == {waits, gone}
    world.control.cancel_job(gone)
    world.run(295)
    promises = world.loop.knowledge.promises
    assert (promises.kept, promises.broken) == (0, 1)  # `b` should have started; of `c` nothing is expected
    assert world.loop.sight.desired.caution == promises.caution > 1.0


def test_the_shortest_go_first_if_that_is_the_order(world: World) -> None:
    world.order = Order.SHORTEST
    world.open()
    for name, seconds in (("long", 5000), ("short", 50)):
        world.control.submit_job(world.spec(name, resources={"cpus": 4}, expected_runtime=seconds))
    world.run(3)
    assert [world.control.get_job(name)["phase"] for name in ("long", "short")] == ["queued", "running"]


def test_a_loop_that_tells_no_tokens_is_as_fast_as_its_steps() -> None:
    assert speed([{"step": 1, "time_s": 1.0}, {"step": 3, "time_s": 2.0}, {"step": 5, "time_s": 3.0}]) == 2.0
    assert speed([{"step": 1, "tokens_per_s": 5.0}, {"step": 2, "tokens_per_s": 7.0}]) == 6.0
    assert speed([{"step": 1, "time_s": 1.0}]) is None and speed([]) is None
    assert speed([{"step": 1, "tokens_per_s": None}, {"step": 2, "tokens_per_s": "fast", "time_s": None}]) is None


def test_what_the_cluster_shows_again_is_the_very_same_value(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.outcomes["coder-1"] = [Outcome(1000.0)]
    world.control.submit_job(world.spec())
    honest = world.cluster.observe

    def anew(*asked: Any) -> Snapshot:
        """As an adapter that makes its values from what Ray says."""
        seen = honest(*asked)
        attempts = {id: replace(attempt) for id, attempt in seen.attempts.items()}
        return replace(seen, nodes=tuple(map(replace, seen.nodes)), attempts=attempts)

    monkeypatch.setattr(world.cluster, "observe", anew)
    world.run(4)
    before = world.loop.sight.snapshot
    world.run(2)
    after = world.loop.sight.snapshot
    assert after.now > before.now and after.nodes is before.nodes
    assert after.attempts["coder-1"] is before.attempts["coder-1"]
    world.cluster.drain_node("node-0")
    world.run(1)
    assert world.loop.sight.snapshot.nodes[0].draining
