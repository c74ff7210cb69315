"""Who ends for a job of a higher priority: whole jobs, those that lose least, none more than needed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmos.core.plan import plan
from llmos.core.types import Attempt, AttemptPhase, Desired, Gang, Job, Node, Resources, Tenant
from tests.unit.core.values import NOW, RUNNING, decide, see, told


def gpus(count: int) -> Gang:
    return Gang((Resources(gpus=1),) * count)


def runs(id: str, count: int, node: str = "n", **fields: Any) -> tuple[Job, Attempt]:
    """A job on ``count`` GPUs of ``node``, begun 100 s ago."""
    nodes = (node,) * count
    mine = Job(id, gpus(count), 0.0, attempt=1, attempts=1, opened_at=NOW - 100, placement=nodes)
    return replace(mine, **fields), Attempt(id, 1, RUNNING, nodes=nodes)


def urgent(count: int, **fields: Any) -> Job:
    return Job("urgent", gpus(count), 1.0, priority=5, **fields)


NODE = Node("n", Resources(gpus=4))


def test_the_one_that_loses_least_work_ends() -> None:
    (a, seen_a), (b, seen_b) = runs("a", 2, checkpointed_at=NOW - 50), runs("b", 2, checkpointed_at=NOW - 10)
    (stop,) = decide(see([NODE], seen_a, seen_b), a, b, urgent(2)).actions
    assert (stop.id, stop.why) == (
        "b",
        "preempted: room for urgent (priority 5, this has 0); loses 10 s of work on 2 GPUs",
    )
    wide, seen_wide = runs("wide", 3, checkpointed_at=NOW - 10)
    narrow, seen_narrow = runs("narrow", 1, checkpointed_at=NOW - 20)
    assert told(decide(see([NODE], seen_wide, seen_narrow), wide, narrow, urgent(1))) == ["stop narrow-1"]


def test_none_ends_that_is_not_needed() -> None:
    (a, seen_a), (b, seen_b) = runs("a", 1, checkpointed_at=NOW - 1), runs("b", 3, checkpointed_at=NOW - 50)
    snapshot = see([NODE], seen_a, seen_b)
    assert told(decide(snapshot, a, b, urgent(3))) == ["stop b-1"]  # what `a` has would not be enough, and b's is
    assert sorted(told(decide(snapshot, a, b, urgent(4)))) == ["stop a-1", "stop b-1"]
    assert told(decide(snapshot, a, b, replace(urgent(4), priority=0))) == []
    fixed = replace(b, preemptible=False)
    assert told(decide(snapshot, a, fixed, urgent(3))) == []  # not even `a`: that would not be enough


def test_one_that_ends_already_is_waited_for() -> None:
    (a, seen_a), (b, seen_b) = runs("a", 2), runs("b", 2)
    asked = replace(seen_a, stopping_since=NOW - 1)
    assert told(decide(see([NODE], asked, seen_b), a, b, urgent(2))) == []
    assert told(decide(see([NODE], asked, seen_b), a, b, urgent(3))) == ["stop b-1"]


def test_after_its_checkpoint_the_room_is_the_urgent_ones_and_it_is_next() -> None:
    mine, _ = runs("a", 4)
    ended = Attempt("a", 1, AttemptPhase.YIELDED)
    made = decide(see([NODE], ended), replace(mine, submitted_at=500.0), Job("b", gpus(4), 0.0), urgent(4))
    assert told(made) == ["close a-1 queued", "start urgent-1 on n n n n"]
    assert list(made.estimates) == [] and "behind urgent" not in made.waiting["a"]
    assert made.waiting["b"].endswith("behind a")


def test_a_tenant_that_would_come_first_again_keeps_what_it_has() -> None:
    mine, seen = runs("a", 2, tenant="poor")
    rich = urgent(4, tenant="rich")
    holds, also = runs("r", 2, tenant="rich", preemptible=False, priority=9)
    tenants = (Tenant("poor"), Tenant("rich"))
    made = plan(Desired((mine, holds, replace(rich, gang=gpus(2))), tenants=tenants), see([NODE], seen, also))
    assert told(made) == []
    heavy = (Tenant("poor", used=Resources(gpus=4)), Tenant("rich"))
    made = plan(Desired((mine, holds, replace(rich, gang=gpus(2))), tenants=heavy), see([NODE], seen, also))
    assert told(made) == ["stop a-1"]
