"""What would let a job start now, case by case; each answer is one that ``plan`` has given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from llmos.core import explain as explaining
from llmos.core.explain import Explanation, explain, outlook
from llmos.core.plan import plan
from llmos.core.standing import Standing
from llmos.core.types import (
    Attempt,
    Desired,
    Failure,
    Gang,
    Job,
    Node,
    NodeKind,
    Resources,
    Service,
    ServiceStatus,
    Snapshot,
    Strategy,
    Tenant,
    Verb,
)
from tests.unit.core.values import NOW, cpus, job, node, running, see
from tests.unit.sim.worlds import World as RandomWorld
from tests.unit.sim.worlds import worlds

HOUR = 3600.0


def asked(id: str, snapshot: Snapshot, *jobs: Job, **desired: Any) -> Explanation:
    wanted = Desired(jobs, **desired)
    made = plan(wanted, snapshot)
    subject = next(one for one in jobs if one.id == id)
    return explain(subject, wanted, snapshot, made, Standing(wanted, snapshot, made))


def ways(id: str, snapshot: Snapshot, *jobs: Job, **desired: Any) -> list[str]:
    return [way.text for way in asked(id, snapshot, *jobs, **desired).ways]


def test_what_would_do_is_told_the_cheapest_first() -> None:
    busy, attempt = running("busy", "n0")
    found = asked("a", see([node("n0")], attempt), busy, job("a", cpus(1, 1), at=1))
    assert [way.text for way in found.ways] == [
        "if it asked for 1 CPU instead of 2 (1 bundle)",
        "if its priority were 1 instead of 0: busy would have to end for it",
        "if busy ended",
        "if one more node like n0 (2 CPUs) joined",
    ]
    assert [way.kind for way in found.ways] == ["size", "priority", "ended", "nodes"]
    assert found.outlook.reason == "needs 2 bundles of 1 CPU; 1 CPU free of 2"
    assert (found.outlook.estimate, found.release, found.limited) == (None, None, "")
    assert 0 < found.trials <= explaining.MOST_TRIALS


def test_when_what_runs_ends_is_told_where_it_is_known() -> None:
    busy, attempt = running("busy", "n0")
    busy = replace(busy, estimate_s=1600.0)
    found = asked("a", see([node("n0")], attempt), busy, job("a", cpus(1, 1), at=1))
    assert found.release == (1600.0, "busy") and found.outlook.estimate == (1600.0, 1600.0)
    assert "if busy ended (expected at 00:26 UTC)" in [way.text for way in found.ways]
    late = replace(busy, estimate_s=900.0)
    assert "if busy ended (it is overdue)" in ways("a", see([node("n0")], attempt), late, job("a", cpus(1, 1), at=1))


def test_a_short_job_could_start_beside_those_before_it() -> None:
    busy, attempt = running("busy", "n0")
    jobs = replace(busy, estimate_s=1600.0), job("big", cpus(1, 1), at=1), job("small", at=2)
    assert ways("small", see([node("n0")], attempt), *jobs) == [
        "if it were expected to run for at most 10 min",
        "if its priority were 1 instead of 0",
        "if big did not wait for room, too",
        "if one more node like n0 (2 CPUs) joined",
    ]


def test_the_fewest_that_would_have_to_end() -> None:
    nodes = [node(f"n{i}", 1) for i in range(3)]
    seats = [running(f"j{i}", f"n{i}") for i in range(3)]
    jobs = [replace(mine, estimate_s=HOUR * (3 - i), priority=9) for i, (mine, _) in enumerate(seats)]
    found = ways("a", see(nodes, *(attempt for _, attempt in seats)), *jobs, job("a", cpus(1, 1), at=1, priority=9))
    assert "if j2 and j1 ended (expected at 02:00 UTC)" in found
    assert "if its priority were 10 instead of 9: j0 and j1 would have to end for it" in found
    assert "if 2 more nodes like n0 (1 CPU each) joined" in found


def test_a_quota_as_wide_as_it_would_have_to_be() -> None:
    busy, attempt = running("busy", "n0", "n0")
    tenants = (Tenant("team", quota=Resources(cpus=2)),)
    jobs = replace(busy, tenant="team"), job("a", at=1, tenant="team")
    assert ways("a", see([node("n0", 4)], attempt), *jobs, tenants=tenants) == [
        "if team's quota were 3 CPUs",
        "if busy ended",
    ]


def test_a_borrow_limit_and_a_budget() -> None:
    busy, attempt = running("busy", "n0", "n0")
    jobs = replace(busy, tenant="team"), job("a", at=1, tenant="team")
    tenants = Tenant("team", borrow_limit=0.0), Tenant("other")
    assert "if team's borrow limit were 0.5 instead of 0" in ways(
        "a", see([node("n0", 4)], attempt), *jobs, tenants=tenants
    )
    card = Gang((Resources(cpus=1, gpus=1),))
    machine = Node("n0", Resources(cpus=4, gpus=4))
    broke = (Tenant("team", budget_gpu_s=HOUR, spent_gpu_s=HOUR - 1),)
    assert ways("b", see([machine]), job("b", card, tenant="team"), tenants=broke) == [
        "if team had more than its budget of 1 GPU-hours"
    ]


def test_looser_wishes() -> None:
    nodes = [node(f"n{i}", 1, labels=(("rack", f"r{i}"), ("zone", "a"))) for i in range(2)]
    gang = replace(cpus(1, 1), topology="rack")
    assert ways("a", see(nodes), job("a", gang)) == [
        "if it asked for 1 CPU instead of 2 (1 bundle)",
        "if it need not lie in one rack",
        "if one more node like n0 (1 CPU) joined",
        "if one more node like n1 (1 CPU) joined",
    ]
    assert "if its nodes need not have zone=b" in ways(
        "a", see(nodes), job("a", replace(cpus(1), labels=(("zone", "b"),)))
    )
    packed = job("a", replace(cpus(1, 1), strategy=Strategy.STRICT_PACK))
    assert "if it need not lie on one node" in ways("a", see(nodes), packed)


def test_fewer_gpus_of_one_bundle() -> None:
    machine = Node("n0", Resources(cpus=8, gpus=8), foreign=Resources(gpus=2))
    found = ways("a", see([machine]), job("a", Gang((Resources(cpus=1, gpus=8),))))
    assert found[:1] == ["if it asked for 6 GPUs instead of 8"]
    assert "if the work on n0 that llmos did not start ended" in found


def test_nodes_that_take_no_work() -> None:
    assert ways("a", see([node("n0", draining=True)]), job("a")) == [
        "if n0 took work again instead of draining",
        "if one more node like n0 (2 CPUs) joined",
    ]
    busy, attempt = running("busy", "n1", "n2", "n3")
    failures = tuple(Failure(NOW - 9, id, ("n0",)) for id in ("x", "y"))
    found = ways("a", see([node(f"n{i}", 1) for i in range(4)], attempt), busy, job("a", at=1), failures=failures)
    assert found[1:3] == ["if n0 were not in quarantine", "if busy ended"]


def test_kinds_of_nodes_that_the_autoscaler_knows() -> None:
    kinds = (NodeKind("small", Resources(cpus=1), most=4), NodeKind("large", Resources(cpus=4), most=4))
    assert ways("a", see([node("n0", 1)]), job("a", cpus(1, 1, 1, 1)), kinds=kinds)[-2:] == [
        "if 3 more nodes of kind small joined",
        "if one more node of kind large joined",
    ]


def test_services_hold_what_it_needs() -> None:
    service = Service("chat", "d", cpus(1), 2)
    status = ServiceStatus("chat", "d", 2, 2, nodes=("n0", "n0"))
    found = ways("a", see([node("n0")], services=(status,)), job("a"), services=(service,))
    assert found == ["if service chat were removed", "if one more node like n0 (2 CPUs) joined"]


def test_what_only_needs_time() -> None:
    paused = job("a", attempts=1, failures=1, retries=2, not_before=NOW + 4)
    assert ways("a", see([node("n0")]), paused) == ["at 00:16 UTC, when its pause after failure 1 is over"]
    before, attempt = running("x", "n0")
    assert ways("a", see([node("n0")], attempt), before, job("a", after=("x",))) == [
        "once x, which it comes after, has succeeded"
    ]
    leaving = replace(attempt, stopping_since=NOW - 1)
    assert ways("a", see([node("n0", 1)], leaving), before, job("a", priority=1))[0] == (
        "once x, which is ending, has ended"
    )


def test_a_job_that_is_far_back_is_looked_at_when_it_is_asked_for() -> None:
    busy, attempt = running("busy", "n0", "n0")
    jobs = (replace(busy, estimate_s=1600.0), *(job(f"j{i}", at=i, estimate_s=60.0) for i in range(1, 6)))
    wanted, snapshot = Desired(jobs, tried=2), see([node("n0")], attempt)
    made = plan(wanted, snapshot)
    assert made.waiting["j5"] == "place 5 in the queue" and "j5" not in made.estimates
    found = outlook(jobs[5], wanted, snapshot, made, Standing(wanted, snapshot, made))
    assert found.reason == "needs 1 bundle of 1 CPU; 0 CPUs free of 2; next release 00:26 by busy; behind j1"
    assert found.turn == 5 and found.estimate == (1720.0, 1720.0)


@pytest.mark.parametrize(
    ("work", "trials", "limited"),
    [
        (6, 0, "nothing was tried: the cluster is large (1 nodes, 2 jobs)"),
        (15, 5, "only 5 changes were tried: the cluster is large (1 nodes, 2 jobs)"),
    ],
)
def test_large_clusters_are_asked_less_or_nothing_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, work: int, trials: int, limited: str
) -> None:
    monkeypatch.setattr(explaining, "WORK", work)
    busy, attempt = running("busy", "n0")
    found = asked("a", see([node("n0")], attempt), busy, job("a", cpus(1, 1), at=1))
    assert (found.trials, found.limited) == (trials, limited)
    assert bool(found.ways) == bool(trials)


def test_a_dozen_plans_for_one_question_on_a_cluster_of_some_size() -> None:
    seats = [running(f"r{i:03}", f"n{i:03}") for i in range(200)]
    waiting = [job(f"w{i:03}", cpus(*[1] * 4), at=float(i)) for i in range(200)]
    nodes = [node(f"n{i:03}", 1) for i in range(200)]
    found = asked("w199", see(nodes, *(a for _, a in seats)), *(j for j, _ in seats), *waiting)
    assert found.outlook.turn == 200 and found.trials <= explaining.MOST_TRIALS
    texts = [way.text for way in found.ways]
    assert "if its priority were 1 instead of 0: r000, r001, r002 and 1 more would have to end for it" in texts
    assert all("if r" not in text for text in texts)  # the jobs before it would come first


def test_an_attempt_without_a_job_is_nobodys_release() -> None:
    stray = Attempt("gone", 1, running("x", "n0")[1].phase, nodes=("n0",))
    found = asked("a", see([node("n0", 1)], stray), job("a"))
    assert found.release is None


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(worlds)
def test_what_is_told_is_so_on_random_clusters(world: RandomWorld) -> None:
    desired, snapshot = world.inputs()
    made = plan(desired, snapshot)
    standing = Standing(desired, snapshot, made)
    for id in standing.places:
        subject = next(one for one in desired.jobs if one.id == id)
        found = explain(subject, desired, snapshot, made, standing)
        assert found.trials <= explaining.MOST_TRIALS and found.outlook.reason
        assert len({way.text for way in found.ways}) == len(found.ways)
        for way in found.ways:
            if way.kind == "ended" and " and " not in way.text:
                gone = way.text.split()[1]
                jobs = tuple(one for one in desired.jobs if one.id != gone)
                attempts = {job: attempt for job, attempt in snapshot.attempts.items() if job != gone}
                after = plan(replace(desired, jobs=jobs), replace(snapshot, attempts=attempts))
                assert (Verb.START, id) in {(action.verb, action.id) for action in after.actions}
