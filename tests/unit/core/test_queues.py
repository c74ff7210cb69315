"""Whose turn it is, and what tenants may hold and spend."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.core.plan import plan
from llmos.core.queues import decayed
from llmos.core.types import Attempt, AttemptPhase, Desired, Gang, Job, Node, Plan, Resources, Tenant
from tests.unit.core.values import cpus, job, node, running, see, told


def ask(nodes: list[Node], *jobs: Any, tenants: tuple[Tenant, ...] = (), attempts: tuple[Any, ...] = ()) -> Plan:
    return plan(Desired(jobs, tenants=tenants), see(nodes, *attempts))


def order(made: Plan) -> list[str]:
    return [line.split()[1].partition("-")[0] for line in told(made) if line.startswith("start")]


def of(tenant: str, *ids: str, **fields: Any) -> list[Job]:
    return [job(id, at=float(i), tenant=tenant, **fields) for i, id in enumerate(ids)]


def test_tenants_take_turns_by_their_shares() -> None:
    jobs = of("a", "a0", "a1", "a2", "a3") + of("b", "b0", "b1", "b2", "b3")
    assert order(ask([node("n", 6)], *jobs)) == ["a0", "b0", "a1", "b1", "a2", "b2"]
    twice = (Tenant("a", share=2.0), Tenant("b"))
    assert order(ask([node("n", 6)], *jobs, tenants=twice)) == ["a0", "b0", "a1", "a2", "b1", "a3"]


def test_what_a_tenant_holds_and_held_counts() -> None:
    mine, attempt = running("a9", "n", "n")
    jobs = [replace(mine, tenant="a"), *of("a", "a0"), *of("b", "b0", "b1", "b2")]
    assert order(ask([node("n", 5)], *jobs, attempts=(attempt,))) == ["b0", "b1", "a0"]
    before = (Tenant("a", used=Resources(cpus=2, custom=(("TPU", 1.0),))), Tenant("b"))  # TPUs: there are none any more
    assert order(ask([node("n", 3)], *jobs[1:], tenants=before)) == ["b0", "b1", "a0"]


def test_the_dominant_resource_decides() -> None:
    """The example of the paper: 9 CPUs and 18 GB; A's jobs need 1 CPU and 4 GB, B's 3 CPUs and 1 GB: three and two."""
    big = Node("n", Resources(cpus=9, memory_bytes=18))
    a = of("a", *(f"a{i}" for i in range(9)), gang=Gang((Resources(cpus=1, memory_bytes=4),)))
    b = of("b", *(f"b{i}" for i in range(9)), gang=Gang((Resources(cpus=3, memory_bytes=1),)))
    made = order(ask([big], *a, *b))
    assert (sum(id[0] == "a" for id in made), sum(id[0] == "b" for id in made)) == (3, 2)


def test_children_share_what_their_parent_has() -> None:
    tree = (Tenant("a"), Tenant("b"), Tenant("b/x", "b"), Tenant("b/y", "b"))
    jobs = of("a", "a0", "a1", "a2", "a3") + of("b/x", "x0", "x1") + of("b/y", "y0", "y1") + of("b", "b0")
    assert order(ask([node("n", 8)], *jobs, tenants=tree)) == ["a0", "b0", "a1", "x0", "a2", "y0", "a3", "x1"]
    loop = (Tenant("a", "b"), Tenant("b", "a"))
    assert len(order(ask([node("n", 9)], *of("a", "a0"), *of("b", "b0"), tenants=loop))) == 2


def test_priorities_then_those_made_to_end_then_first_come() -> None:
    jobs = [job("a", at=1), job("b", at=2, priority=1), job("c", at=3, resumes=True), job("d", at=0, priority=-1)]
    assert order(ask([node("n", 4)], *jobs)) == ["b", "c", "a", "d"]


def test_a_job_that_yielded_goes_to_the_head_of_its_queue() -> None:
    mine, _ = running("z", "n")
    late = replace(mine, submitted_at=500.0)
    made = ask([node("n", 1)], late, job("a", at=1), attempts=(Attempt("z", 1, AttemptPhase.YIELDED),))
    assert order(made) == ["z"]


def gpus(*amounts: float) -> Gang:
    return Gang(tuple(Resources(gpus=amount) for amount in amounts))


EIGHT = [Node("n", Resources(cpus=8, gpus=8))]


@pytest.mark.parametrize(
    ("tenant", "why"),
    [
        (Tenant("a", quota=Resources(gpus=2)), "tenant a holds 2 GPUs of its quota of 2 GPUs; this needs 1 GPU"),
        (
            Tenant("a", quota=Resources(gpus=2, custom=(("TPU", 4.0),))),  # which no node has
            "tenant a holds 2 GPUs of its quota of 2 GPUs; this needs 1 GPU",
        ),
        (
            Tenant("a", borrow_limit=0.0, share=1 / 3),
            "tenant a holds 2 GPUs; its share and what it may borrow are 2 GPUs; this needs 1 GPU",
        ),
        (
            Tenant("a", budget_gpu_s=3600.0, spent_gpu_s=3200.0),
            "tenant a has 0.04444 GPU-hours of its budget of 1 left; this needs 0.08333",
        ),
    ],
)
def test_a_limit_holds_a_job_back_and_blocks_nobody(tenant: Tenant, why: str) -> None:
    jobs = of("a", "a0", "a1", "a2", gang=gpus(1), estimate_s=120.0) + of("b", "b0", "b1", gang=gpus(1))
    if tenant.budget_gpu_s is not None:
        jobs[2] = replace(jobs[2], estimate_s=300.0)
    made = ask(EIGHT, *jobs, tenants=(tenant, Tenant("b")))
    assert sorted(order(made)) == ["a0", "a1", "b0", "b1"]
    assert dict(made.waiting) == {"a2": why}


def test_limits_count_descendants() -> None:
    tree = (Tenant("b", quota=Resources(gpus=1)), Tenant("b/x", "b"))
    made = ask(EIGHT, *of("b/x", "x0", gang=gpus(1)), *of("b", "b0", gang=gpus(1)), tenants=tree)
    assert len(order(made)) == 1 and "tenant b holds 1 GPU of its quota" in next(iter(made.waiting.values()))


def test_what_runs_ends_when_its_budget_is_used_up() -> None:
    mine, attempt = running("a", "n")
    mine = replace(mine, gang=gpus(1), tenant="a", grace_s=60.0)
    broke = Tenant("a", budget_gpu_s=1000.0, spent_gpu_s=941.0)
    (stop,) = ask(EIGHT, mine, tenants=(broke,), attempts=(attempt,)).actions
    assert stop.why == "tenant a has used its budget of 0.2778 GPU-hours"
    assert not ask(EIGHT, mine, tenants=(replace(broke, spent_gpu_s=940.0),), attempts=(attempt,)).actions


@given(st.floats(0, 8), st.floats(0, 8), st.floats(0, 1e6))
def test_usage_decays_towards_what_is_held(used: float, held: float, elapsed_s: float) -> None:
    mixed = decayed(Resources(gpus=used), Resources(gpus=held), elapsed_s).gpus
    assert min(used, held) - 1e-9 <= mixed <= max(used, held) + 1e-9
    half = decayed(
        decayed(Resources(gpus=used), Resources(gpus=held), elapsed_s / 2), Resources(gpus=held), elapsed_s / 2
    )
    assert half.gpus == pytest.approx(mixed, abs=1e-6)
    assert decayed(Resources(gpus=4), Resources(), 86400.0).gpus == 2.0


def test_only_the_first_thousand_are_looked_at_and_the_others_know_their_place() -> None:
    busy, attempt = running("busy", "n")
    jobs = [job(f"j{i:04}", cpus(2), at=float(i)) for i in range(1500)]
    made = ask([node("n", 2)], busy, *jobs, attempts=(attempt,))
    assert made.waiting["j0999"].startswith("needs ") and made.waiting["j1000"] == "place 1,001 in the queue"
    assert len(made.waiting) == len(dict(made.waiting)) == 1500 and "busy" not in made.waiting
    assert made.waiting["j1499"] == "place 1,500 in the queue"
