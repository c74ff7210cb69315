"""Dependencies, quarantine, and the nodes that the autoscaler should keep."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmos.core.dependencies import cycle
from llmos.core.plan import plan
from llmos.core.quarantine import quarantined
from llmos.core.types import (
    Attempt,
    AttemptPhase,
    Desired,
    Failure,
    Gang,
    Job,
    JobPhase,
    Node,
    NodeKind,
    Plan,
    Resources,
    Snapshot,
)
from tests.unit.core.values import NOW, cpus, job, node, running, see, told


def ask(snapshot: Snapshot, *jobs: Job, **fields: object) -> Plan:
    return plan(Desired(jobs, **fields), snapshot)  # type: ignore[arg-type]


def test_a_job_waits_for_those_it_comes_after() -> None:
    second = job("b", after=("a", "old"))
    made = ask(see([node("n")]), job("a"), second)
    assert told(made) == ["start a-1 on n"]
    assert made.waiting == {"b": "comes after a and 1 more, not finished yet"}
    ended = {"a": JobPhase.SUCCEEDED, "old": JobPhase.SUCCEEDED}
    assert told(ask(see([node("n")]), second, ended=ended)) == ["start b-1 on n"]
    unknown = ask(see([node("n")]), second, ended={"a": JobPhase.SUCCEEDED})
    assert unknown.waiting == {"b": "comes after old, not finished yet"}
    again = replace(second, attempts=1, failures=1)  # it has been let in
    assert told(ask(see([node("n")]), again)) == ["start b-2 on n"]


def test_it_starts_in_the_plan_that_closes_the_last_of_them_and_fails_with_the_first_that_does() -> None:
    mine, _ = running("a", "n")
    chain = (mine, job("b", after=("a",)), job("c", after=("b",)))
    done = ask(see([node("n")], Attempt("a", 1, AttemptPhase.SUCCEEDED)), *chain)
    assert told(done) == ["close a-1 succeeded", "start b-1 on n"]
    failed = ask(see([node("n")], Attempt("a", 1, AttemptPhase.FAILED, retry=False)), *chain)
    assert told(failed) == ["close a-1 failed", "close b failed", "close c failed"]
    assert [action.why for action in failed.actions[1:]] == [
        "a, which it comes after, failed",
        "b, which it comes after, failed",
    ]
    gone = ask(see([node("n")]), chain[1], ended={"a": JobPhase.CANCELLED})
    assert gone.actions[0].why == "a, which it comes after, was cancelled"


def test_jobs_that_wait_for_one_another_say_so() -> None:
    made = ask(see([node("n")]), job("a", after=("b",)), job("b", after=("a",)), job("c", after=("a",)))
    assert told(made) == []
    assert made.waiting["a"] in ("waits for itself: a after b after a", "waits for itself: b after a after b")
    assert made.waiting["c"] == "comes after a, not finished yet"
    assert cycle({"a": ("b",), "b": ("c",)}) == []
    assert sorted(cycle({"a": ("b",), "b": ("c",), "c": ("a",), "d": ("a",)})) == ["a", "b", "c"]


def test_a_node_that_kills_jobs_gets_no_more_for_a_while() -> None:
    nodes = [node(f"n{i}", 1) for i in range(4)]
    failures = (Failure(NOW - 10, "x", ("n0",)), Failure(NOW - 5, "y", ("n0",)))
    made = ask(see(nodes), *(job(f"j{i}", at=i) for i in range(4)), failures=failures)
    assert told(made) == ["start j0-1 on n1", "start j1-1 on n2", "start j2-1 on n3"]
    assert made.quarantined == {"n0": "2 jobs failed on it within 60 minutes: x, y"}
    wide = ask(see(nodes), job("wide", cpus(1, 1, 1, 1)), failures=failures)
    assert wide.waiting["wide"].endswith("cannot start while n0 take no work: jobs failed there")
    later = ask(replace(see(nodes), now=NOW + 3600), job("wide", cpus(1, 1, 1, 1)), failures=failures)
    assert len(told(later)) == 1


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ([("x", "a"), ("y", "a")], {"a"}),
        ([("x", "a"), ("x", "a"), ("x", "a")], set()),  # one job, that may be broken itself
        ([("x", "ab"), ("y", "ac"), ("z", "ad")], set()),  # shared blame
        ([("x", "ab"), ("y", "ac"), ("z", "ad"), ("x", "a")], {"a"}),
        ([("x", "a"), ("y", "a"), ("x", "b"), ("y", "b"), ("z", "b")], {"b"}),  # a quarter of them at most
    ],
)
def test_the_blame_for_failures(failures: list[tuple[str, str]], expected: set[str]) -> None:
    told = [Failure(NOW, job, tuple(nodes)) for job, nodes in failures]
    assert quarantined(told, "abcd", NOW).keys() == expected
    assert not quarantined(told, "abcd", NOW + 3600) and not quarantined(told, "abc", NOW)


KIND = NodeKind("big", Resources(cpus=4), most=3)


def test_nodes_are_wanted_for_what_waits() -> None:
    one = Node("n0", Resources(cpus=4), kind="big")
    busy, attempt = running("busy", "n0")
    jobs = (job("a", cpus(4), at=1), job("b", cpus(4), at=2), job("c", cpus(4), at=3))
    made = ask(see([one], attempt), busy, *jobs, kinds=(KIND,))
    assert made.wanted_nodes == {"big": 3}
    assert made.waiting["a"].endswith("; a node of kind big is to be started for it")
    assert "to be started" not in made.waiting["c"]
    assert ask(see([one]), kinds=(KIND,)).wanted_nodes == {"big": 0}
    assert ask(see([one]), kinds=(replace(KIND, fewest=2),)).wanted_nodes == {"big": 2}
    assert ask(see([one], attempt), busy, kinds=(KIND,)).wanted_nodes == {"big": 1}


@pytest.mark.parametrize(("there", "held", "size", "kept"), [(3, 1, 3, 3), (2, 1, 3, 2), (3, 2, 2, 3), (2, 1, 4, 1)])
def test_nodes_that_a_gang_waits_for_stay_while_others_hold_the_rest(
    there: int, held: int, size: int, kept: int
) -> None:
    """It needs ``size`` of the nodes ``there``, of which some are ``held``; there can be three at most."""
    some = [Node(f"n{i}", Resources(cpus=4), kind="big") for i in range(there)]
    busy = [running(f"r{i}", f"n{i}") for i in range(held)]
    gang = job("gang", cpus(*[4] * size))
    made = ask(see(some, *(seen for _, seen in busy)), *(mine for mine, _ in busy), gang, kinds=(KIND,))
    assert told(made) == [] and made.wanted_nodes == {"big": kept}


def test_idle_nodes_that_it_would_not_start_on_may_go() -> None:
    some = [Node(f"n{i}", Resources(cpus=4), kind="big", labels=(("rack", rack),)) for i, rack in enumerate("aabc")]
    busy, attempt = running("busy", "n0")
    gang = job("gang", replace(cpus(4, 4), topology="rack"))
    made = ask(see(some, attempt), busy, gang, kinds=(replace(KIND, most=5),))
    assert told(made) == [] and made.wanted_nodes == {"big": 2}


def test_a_job_that_no_node_there_can_hold_gets_one() -> None:
    kinds = (KIND, NodeKind("gpu", Resources(cpus=4, gpus=8), (("accelerator", "H100"),), most=5))
    wanted = Gang((Resources(gpus=8),) * 2, labels=(("accelerator", "H100"),))
    made = ask(see([node("n0")]), job("a", wanted), kinds=kinds)
    assert made.wanted_nodes == {"big": 0, "gpu": 2}
    assert made.waiting["a"].endswith("; a node of kind gpu is to be started for it")


def test_a_kind_whose_launches_fail_pauses_and_says_why() -> None:
    held = replace(KIND, not_before=NOW + 30, trouble="no capacity in eu-1")
    made = ask(see([]), job("a"), kinds=(held,))
    assert made.wanted_nodes == {"big": 0}
    assert made.waiting["a"].endswith("; no node of kind big for 30 s: no capacity in eu-1")
    some = [Node(f"n{i}", Resources(cpus=4), kind="big") for i in range(2)]
    gang = job("a", Gang((Resources(cpus=4),) * 3))
    assert ask(see(some), gang, kinds=(held,)).wanted_nodes == {"big": 2}  # the rest of the gang has come
    assert ask(see(some), gang, kinds=(replace(held, not_before=NOW),)).wanted_nodes == {"big": 3}
