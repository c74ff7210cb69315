"""What services own and do not use: who may have it, and how they get it back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmos.core.plan import plan
from llmos.core.types import (
    Attempt,
    Desired,
    Gang,
    Job,
    Node,
    Plan,
    Resources,
    Service,
    ServiceStatus,
    Snapshot,
    Strategy,
)
from tests.unit.core.values import NOW, RUNNING, told


def gpus(count: int) -> Gang:
    return Gang((Resources(gpus=1),) * count)


def owner(replicas: int, owned: int = 4, **fields: Any) -> Service:
    return Service("chat", "v1", fields.pop("gang", gpus(1)), replicas, owned=owned, **fields)


def firm(id: str, count: int, at: float = 0.0, **fields: Any) -> Job:
    return Job(id, gpus(count), at, preemptible=False, **fields)


def soft(id: str, count: int, at: float = 0.0, **fields: Any) -> Job:
    return Job(id, gpus(count), at, **fields)


def begun(job: Job, *nodes: str, ago_s: float = 100.0) -> tuple[Job, Attempt]:
    """``job`` as it runs on ``nodes``."""
    mine = replace(job, attempt=1, attempts=1, opened_at=NOW - ago_s, placement=nodes)
    return mine, Attempt(job.id, 1, RUNNING, nodes=nodes)


def decide(
    service: Service, *jobs: Job | tuple[Job, Attempt], nodes: tuple[int, ...] = (8,), there: tuple[str, ...] = ()
) -> Plan:
    """The plan for nodes n0, n1, … with so many GPUs, where the replicas that are ``there`` are deployed."""
    known = [job[0] if isinstance(job, tuple) else job for job in jobs]
    seen = {job[1].job: job[1] for job in jobs if isinstance(job, tuple)}
    machines = tuple(Node(f"n{i}", Resources(gpus=count)) for i, count in enumerate(nodes))
    status = ServiceStatus("chat", "v1", service.replicas, len(there), nodes=there)
    return plan(Desired(tuple(known), (service,)), Snapshot(NOW, machines, seen, {"chat": status}))


def test_what_is_idle_is_lent_to_jobs_that_can_be_ended_and_to_no_others() -> None:
    assert told(decide(owner(0), soft("a", 8))) == ["start a-1 on n0 n0 n0 n0 n0 n0 n0 n0"]
    made = decide(owner(0), firm("a", 5, 1), firm("b", 4, 2), soft("c", 4, 3))
    assert told(made) == ["start c-1 on n0 n0 n0 n0"]
    assert made.waiting["a"] == (
        "needs 5 bundles of 1 GPU; cannot start on what services lend, for it may not be preempted: 4 GPUs left"
    )
    assert "cannot start on what services lend" in made.waiting["b"]  # it would fit, but `a` comes first
    assert told(decide(owner(4), firm("a", 5), there=("n0",) * 4)) == []
    assert told(decide(owner(0, owned=3), firm("a", 5))) == ["start a-1 on n0 n0 n0 n0 n0"]


def test_jobs_that_cannot_be_ended_get_what_is_not_lent() -> None:
    guest = begun(soft("guest", 4), *["n0"] * 4)
    made = decide(owner(0), guest, firm("a", 4))
    assert told(made) == ["start a-1 on n0 n0 n0 n0"]
    assert made.lent == {"n0": 4.0}
    # the idle room counts as where the guest is, so that a whole node is left
    assert told(decide(owner(0), begun(soft("guest", 4), *["n0"] * 4), firm("a", 4), nodes=(4, 4))) == [
        "start a-1 on n1 n1 n1 n1"
    ]


def test_what_is_lent_is_what_jobs_use_of_it() -> None:
    assert decide(owner(0)).lent == {}
    assert decide(owner(2), begun(soft("a", 6), *["n0"] * 6), there=("n0", "n0")).lent == {"n0": 2.0}
    assert decide(owner(0), begun(firm("a", 4), *["n0"] * 4)).lent == {}


def test_replicas_that_come_back_end_those_that_lose_least_and_no_more() -> None:
    long, short, other = (
        begun(soft("long", 2), "n0", "n0", ago_s=500),
        begun(soft("short", 2), "n0", "n0", ago_s=5),
        begun(soft("other", 4), *["n0"] * 4, ago_s=300),
    )
    made = decide(owner(2), long, short, other)
    (stop,) = made.actions
    assert stop.id == "short"
    assert stop.why == "gives back what service chat has lent: loses 5 s of work on 2 GPUs"
    assert told(decide(owner(3), long, short, other)) == ["stop short-1", "stop long-1"]


def test_elastic_jobs_shrink_before_others_end() -> None:
    elastic = begun(soft("elastic", 1, larger=(gpus(4),)), *["n0"] * 4, ago_s=900)
    rigid = begun(soft("rigid", 4), *["n0"] * 4, ago_s=1)
    assert told(decide(owner(2), elastic, rigid)) == ["stop elastic-1"]
    wide = [begun(soft(id, 1, larger=(gpus(4),), goodput=((1, 1.0), (4, rate))), *["n0"] * 4)
            for id, rate in (("a", 3.9), ("b", 1.5))]  # fmt: skip
    assert told(decide(owner(2), *wide)) == ["stop b-1"]  # to which four GPUs are worth less
    kept = begun(firm("kept", 2, larger=(gpus(4),)), *["n0"] * 4)
    fixed = begun(firm("fixed", 4), *["n0"] * 4)
    assert told(decide(owner(2), kept, fixed)) == ["stop kept-1"]
    assert told(decide(owner(3), kept, fixed)) == ["stop kept-1"]  # there is room for two of three


def test_a_service_waits_for_what_is_not_its_own() -> None:
    guest = begun(soft("guest", 8), *["n0"] * 8)
    assert told(decide(owner(1, owned=0), guest)) == []
    assert told(decide(owner(1), begun(firm("guest", 8), *["n0"] * 8))) == []


def test_an_elastic_job_that_cannot_be_ended_has_its_fewest_workers_beside_what_is_lent() -> None:
    wide = firm("wide", 4, larger=(gpus(6), gpus(8)))
    assert told(decide(owner(0), wide)) == ["start wide-1 on n0 n0 n0 n0 n0 n0 n0 n0"]
    assert told(decide(owner(0, owned=5), wide)) == []
    settled = begun(wide, *["n0"] * 4, ago_s=1000)
    assert told(decide(owner(0), settled)) == ["stop wide-1"]  # grows on what is lent
    whole = Gang((Resources(gpus=1),) * 8, strategy=Strategy.STRICT_PACK)
    settled = begun(replace(wide, larger=(whole,)), *["n1"] * 4, ago_s=1000)
    assert told(decide(owner(0, owned=8), settled, nodes=(8, 4))) == []  # all of n0 is lent
    assert told(decide(owner(0, owned=4), settled, nodes=(8, 4))) == ["stop wide-1"]


def test_a_service_that_owns_more_than_there_is_room_for_lets_nothing_more_become_firm() -> None:
    there = begun(firm("there", 6), *["n0"] * 6)
    made = decide(owner(0), there, firm("a", 1))
    assert told(made) == [] and "cannot start on what services lend" in made.waiting["a"]
    assert told(decide(owner(0), there, soft("a", 1))) == ["start a-1 on n0"]
    assert told(decide(owner(0, owned=4, gang=gpus(1)), firm("a", 1), nodes=(5,))) == ["start a-1 on n0"]
    assert told(decide(owner(0, gang=Gang((Resources(gpus=9),))), firm("a", 8))) == ["start a-1 on " + "n0 " * 7 + "n0"]
