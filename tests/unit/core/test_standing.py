"""Who runs and who waits, in which order, as people are told it."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from llmos.core.plan import plan
from llmos.core.standing import Standing
from llmos.core.types import Desired, Job, JobPhase, Resources, Snapshot, Tenant
from tests.unit.core.values import NOW, cpus, job, node, running, see


def stand(snapshot: Snapshot, *jobs: Job, **desired: object) -> Standing:
    wanted = Desired(jobs, **desired)  # type: ignore[arg-type]
    return Standing(wanted, snapshot, plan(wanted, snapshot))


def order(standing: Standing) -> list[str]:
    return [one.id for one in standing.in_order()]


def test_what_runs_and_what_is_about_to() -> None:
    busy, attempt = running("busy", "n0")
    standing = stand(see([node("n0")], attempt), busy, job("next", at=1), job("later", at=2))
    assert {id: nodes for id, (_, nodes) in standing.running.items()} == {"busy": ("n0",), "next": ("n0",)}
    assert order(standing) == ["later"] and standing.places == {"later": 1} and standing.waiting == {"default": 1}
    assert standing.ledger.account("default").held[0] == 2


def test_turns_go_by_what_tenants_hold_and_places_by_their_own_queues() -> None:
    mine, attempt = running("a0", "n0", "n0")
    jobs = [replace(mine, tenant="a"), *(job(f"a{i}", cpus(2), at=i, tenant="a") for i in (1, 2))]
    jobs += [job(f"b{i}", cpus(2), at=i, tenant="b", priority=i) for i in (3, 4)]
    standing = stand(see([node("n0")], attempt), *jobs, tenants=(Tenant("idle"),))
    assert order(standing) == ["b4", "a1", "b3", "a2"]
    assert standing.places == {"a1": 1, "a2": 2, "b4": 1, "b3": 2}
    assert standing.tenants == ["a", "b", "idle"] and standing.waiting == {"a": 2, "b": 2}
    assert (standing.turn("b3", 10), standing.turn("b3", 2), standing.turn("a0", 10)) == (3, None, None)


def test_those_that_wait_for_something_else_come_last_and_an_open_attempt_first() -> None:
    busy, attempt = running("busy", "n0", "n0")
    jobs = busy, job("paused", at=1, not_before=NOW + 9), job("after", at=2, after=("busy",)), job("plain", at=3)
    again = job("again", at=4, attempt=2, attempts=2, placement=("n0",))
    standing = stand(see([node("n0")], attempt), *jobs, again)
    assert order(standing) == ["again", "plain", "paused", "after"]
    met = stand(see([node("n0")], attempt), *jobs, ended={"busy": JobPhase.SUCCEEDED})
    assert order(met) == ["after", "plain", "paused"]


def test_a_job_that_ends_with_this_plan_stands_nowhere() -> None:
    standing = stand(see([node("n0")]), job("over", cancelled=True))
    assert order(standing) == [] and standing.running == {} and standing.places == {}


def test_what_no_node_has_counts_for_nothing() -> None:
    odd = replace(cpus(1), bundles=(Resources(cpus=1, custom=(("moon", 1.0),)),))
    standing = stand(see([node("n0")]), job("a", odd), job("b", cpus(3)))
    assert order(standing) == ["a", "b"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.integers(1, 3)), max_size=12))
def test_the_order_is_that_in_which_the_plan_looks_at_them(made: list[tuple[str, int, int]]) -> None:
    busy, attempt = running("busy", "n0", "n0", "n0")
    jobs = [
        job(f"j{i}", cpus(size), at=float(i), tenant=tenant, priority=priority)
        for i, (tenant, priority, size) in enumerate(made)
    ]
    wanted, snapshot = Desired((replace(busy, priority=9, estimate_s=1600.0), *jobs)), see([node("n0", 3)], attempt)
    decided = plan(wanted, snapshot)
    assert decided.actions == ()
    assert order(Standing(wanted, snapshot, decided)) == [id for id in decided.waiting if id != "busy"]
