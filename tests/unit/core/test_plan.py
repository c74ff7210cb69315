"""The scheduler's decisions on jobs: first in, first out; gangs whole or not at all; one attempt at a time."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from llmos.core.lifecycle import STRAY_GRACE_S
from llmos.core.types import Action, Attempt, AttemptPhase, Desired, Gang, Node, Resources, Snapshot, Verb
from tests.unit.core.values import FAILED, LOST, NOW, RUNNING, cpus, decide, job, node, running, see, told


def test_jobs_start_in_the_order_of_their_submission_not_of_their_names() -> None:
    made = decide(see([node("n0", 2)]), job("a", at=3), job("b", at=1), job("c", at=2))
    assert told(made) == ["start b-1 on n0", "start c-1 on n0"]
    assert made.waiting == {"a": "needs 1 bundle of 1 CPU; 0 CPUs free of 2"}


def test_a_gang_starts_whole_or_not_at_all() -> None:
    gang = cpus(1, 1, 1)
    assert told(decide(see([node("n0"), node("n1", 1)]), job("a", gang))) == ["start a-1 on n1 n0 n0"]
    other, attempt = running("b", "n0")
    made = decide(see([node("n0"), node("n1", 1)], attempt), other, job("a", gang, at=1))
    assert told(made) == []
    assert made.waiting == {"a": "needs 3 bundles of 1 CPU; 2 CPUs free of 3 on 2 nodes"}


def test_the_first_job_that_does_not_fit_blocks_those_behind_it() -> None:
    busy, attempt = running("busy", "n0")
    made = decide(see([node("n0")], attempt), busy, job("big", cpus(1, 1), at=1), job("small", at=2))
    assert told(made) == []
    assert made.waiting["small"] == "needs 1 bundle of 1 CPU; 1 CPU free of 2; behind big"


def test_a_job_that_no_empty_cluster_could_hold_blocks_nobody() -> None:
    made = decide(see([node("n0")]), job("huge", cpus(3), at=1), job("small", at=2))
    assert told(made) == ["start small-1 on n0"]
    assert made.waiting == {
        "huge": "needs 1 bundle of 3 CPUs; cannot start on this cluster: its 1 node (2 CPUs in all) cannot hold it"
    }
    assert decide(see([]), job("a")).waiting == {
        "a": "needs 1 bundle of 1 CPU; cannot start on this cluster: it has no node that takes work"
    }


def test_a_job_that_waits_for_its_retry_blocks_nobody() -> None:
    failed = job("failed", cpus(2), at=1, attempts=1, failures=1, retries=2, not_before=NOW + 4)
    snapshot = see([node("n0")])
    made = decide(snapshot, failed, job("small", at=2))
    assert told(made) == ["start small-1 on n0"]
    assert made.waiting == {"failed": "next attempt in 4 s, after failure 1 (retries: 2)"}
    assert told(decide(replace(snapshot, now=NOW + 4), failed)) == ["start failed-2 on n0"]


def test_foreign_work_and_draining_nodes_leave_no_room() -> None:
    nodes = [node("n0", foreign=Resources(cpus=2)), node("n1", draining=True)]
    made = decide(see(nodes), job("a"))
    assert told(made) == []
    assert made.waiting == {"a": "needs 1 bundle of 1 CPU; 0 CPUs free of 2"}


def test_a_running_job_is_left_alone() -> None:
    mine, attempt = running("a", "n0")
    assert decide(see([node("n0")], attempt), mine).actions == ()
    gone = see([node("n1")], attempt)  # its node too: only the adapter can say that an attempt is lost
    assert decide(gone, mine).actions == ()


def test_an_attempt_that_was_recorded_and_never_began_is_started_again_under_its_number() -> None:
    lost_launch = job("a", at=9, attempt=3, attempts=3, placement=("n1",))
    made = decide(see([node("n0", 1), node("n1", 1)]), job("b", at=1), job("c", at=2), lost_launch)
    assert told(made) == ["start a-3 on n1", "start b-1 on n0"]
    assert made.actions[0].why == "attempt 3 had been recorded, but never began"
    elsewhere = decide(see([node("n0", 1)]), lost_launch)
    assert told(elsewhere) == ["start a-3 on n0"]


def test_an_attempt_seen_absent_is_as_one_not_seen() -> None:
    mine = job("a", attempt=1, attempts=1, placement=("n0",))
    absent = Attempt("a", 1, AttemptPhase.ABSENT)
    assert decide(see([node("n0")], absent), mine) == decide(see([node("n0")]), mine)


def test_a_lost_attempt_is_closed_and_its_retry_waits() -> None:
    mine = replace(running("a", "n0")[0], retries=1)
    made = decide(see([node("n0"), node("n1")], Attempt("a", 1, LOST)), mine)
    assert told(made) == ["close a-1 queued"]
    assert made.actions[0].failed and made.actions[0].not_before == NOW + 2
    assert made.waiting == {"a": "next attempt in 2 s, after failure 1 (retries: 1)"}


def test_what_ends_with_its_node_is_no_failure_and_goes_on_at_once_on_what_is_left() -> None:
    mine = replace(running("a", "n0", "n1")[0], gang=cpus(1), larger=(cpus(1, 1),))
    for end in (Attempt("a", 1, LOST), Attempt("a", 1, FAILED, error="rank 1 failed")):
        made = decide(see([node("n1", 1)], end), mine)
        assert told(made) == ["close a-1 queued", "start a-2 on n1"]
        assert not made.actions[0].failed and made.actions[0].why == "attempt 1: its node n0 is gone"
    hopeless = Attempt("a", 1, FAILED, error="bad data", retry=False)
    assert told(decide(see([node("n1", 1)], hopeless), mine)) == ["close a-1 failed"]


def test_a_yielded_attempt_goes_on_at_once_and_is_not_a_failure() -> None:
    mine, _ = running("a", "n0")
    made = decide(see([node("n0")], Attempt("a", 1, AttemptPhase.YIELDED)), mine)
    assert told(made) == ["close a-1 queued", "start a-2 on n0"]
    assert not made.actions[0].failed


def test_what_ends_makes_room_for_the_next() -> None:
    done, _ = running("a", "n0", "n0")
    made = decide(see([node("n0")], Attempt("a", 1, AttemptPhase.SUCCEEDED)), done, job("b", cpus(1, 1), at=1))
    assert told(made) == ["close a-1 succeeded", "start b-1 on n0 n0"]
    assert made.waiting == {}


@pytest.mark.parametrize("open_attempt", [0, 1])
def test_a_cancelled_job_that_does_not_run_ends_at_once(open_attempt: int) -> None:
    mine = job("a", cancelled=True, attempt=open_attempt, attempts=open_attempt)
    made = decide(see([node("n0")]), mine)
    assert told(made) == [f"close a{'-1' if open_attempt else ''} cancelled"]
    assert made.waiting == {}


def test_a_cancelled_job_that_runs_is_asked_then_killed_and_keeps_its_room() -> None:
    mine, attempt = running("a", "n0", "n0")
    mine, behind = replace(mine, cancelled=True), job("b", at=1)
    assert told(decide(see([node("n0")], attempt), mine, behind)) == ["stop a-1"]
    asked = replace(attempt, stopping_since=NOW)
    assert told(decide(see([node("n0")], asked), mine, behind)) == []
    later = see([node("n0")], asked, now=NOW + STRAY_GRACE_S)
    assert told(decide(later, mine, behind)) == ["stop a-1 by force"]
    killed = see([node("n0")], Attempt("a", 1, LOST))
    assert told(decide(killed, mine, behind)) == ["close a-1 cancelled", "start b-1 on n0"]


def test_a_job_that_has_run_for_too_long_is_asked_to_end_and_fails() -> None:
    mine, attempt = running("a", "n0")
    mine = replace(mine, max_runtime_s=600.0, run_s=100.0, opened_at=NOW - 500)
    (action,) = decide(see([node("n0")], attempt), mine).actions
    assert (action.verb, action.why) == (Verb.STOP, "ran for 600 s: max_runtime is 600 s")
    assert told(decide(see([node("n0")], Attempt("a", 1, AttemptPhase.YIELDED)), mine)) == ["close a-1 failed"]


def test_a_failure_beyond_the_retries_is_the_end() -> None:
    mine = replace(running("a", "n0")[0], retries=1, failures=1)
    assert told(decide(see([node("n0")], Attempt("a", 1, FAILED, error="boom")), mine)) == ["close a-1 failed"]


def test_a_stray_attempt_is_stopped_and_its_nodes_are_left_alone_until_it_is_gone() -> None:
    stray = Attempt("gone", 7, RUNNING, nodes=("n0",))
    nodes = [node("n0", 1), node("n1", 1)]
    made = decide(see(nodes, stray), job("a"), job("b", at=1))
    assert told(made) == ["stop gone-7", "start a-1 on n1"]
    assert made.actions[0].why == "no job has this attempt open"
    assert "behind" not in made.waiting["b"]


def test_an_older_attempt_that_is_still_alive_holds_its_job_back() -> None:
    mine = job("a", attempt=2, attempts=2, placement=("n1",))
    made = decide(see([node("n0"), node("n1")], Attempt("a", 1, RUNNING, nodes=("n0",))), mine, job("b", at=1))
    assert told(made) == ["stop a-1", "start b-1 on n1"]
    assert made.waiting == {"a": "attempt 1 is still ending"}


def test_an_attempt_whose_nodes_are_not_seen_holds_those_it_was_given() -> None:
    mine, attempt = running("a", "n0")
    made = decide(see([node("n0", 1), node("n1", 1)], replace(attempt, nodes=())), mine, job("b", at=1))
    assert told(made) == ["start b-1 on n1"]


def test_the_memo_changes_nothing_and_a_foreign_one_is_ignored() -> None:
    snapshot = see([node("n0")])
    jobs = (job("huge", cpus(3)), job("a", at=1), job("b", cpus(2), at=2))
    made = decide(snapshot, *jobs)
    assert decide(snapshot, *jobs, memo=made.memo) == made
    assert decide(snapshot, *jobs, memo="from another version") == made
    larger = see([node("n0", 3)])
    assert decide(larger, *jobs, memo=made.memo) == decide(larger, *jobs) != made


def test_every_start_says_why() -> None:
    wide = Gang((Resources(cpus=1, gpus=1, memory_bytes=2**30, custom=(("disk", 0.5),)),) * 5)
    nodes = [Node(f"n{i}", Resources(cpus=1, gpus=1, memory_bytes=2**31, custom=(("disk", 1.0),))) for i in range(5)]
    (action,) = decide(see(nodes), job("a", wide)).actions
    size = "5 bundles of 1 CPU and 1 GPU and 1 GiB and 0.5 disk"
    assert action.why == f"attempt 1: {size} on n0, n1, n2, n3 and 1 more nodes"
    busy = [replace(each, foreign=Resources(memory_bytes=2**30 + 1, custom=(("disk", 0.25),))) for each in nodes]
    assert decide(see(busy), job("a", wide)).waiting == {
        "a": f"needs {size}; 5 CPUs free of 5, 5 GPUs free of 5, 5 GiB free of 10, 3.75 disk free of 5 on 5 nodes"
    }


def test_a_plan_is_the_same_in_whatever_order_things_are_listed() -> None:
    nodes = [node(f"n{i}", 1) for i in range(3)]
    jobs = [job("a", cpus(1, 1), at=1), job("b", at=0), job("c", at=0)]
    made = decide(see(nodes), *jobs)
    turned = decide(see(nodes[::-1]), *jobs[::-1])
    assert (made.actions, dict(made.waiting)) == (turned.actions, dict(turned.waiting))


def crowd(jobs: int, nodes: int) -> tuple[Desired, Snapshot]:
    """A queue of unlike gangs in front of an empty cluster that holds some of them: nothing is settled yet."""
    bundle = Resources(cpus=4, gpus=1, memory_bytes=2**30)
    queue = tuple(job(f"j{i:05}", Gang((bundle,) * (8 + i % 5)), at=float(i)) for i in range(jobs))
    machine = Resources(cpus=32, gpus=8, memory_bytes=2**38)
    return Desired(queue), see([Node(f"n{i:05}", machine) for i in range(nodes)])


def test_planning_for_1000_jobs_and_500_nodes_costs_no_more_than_their_product() -> None:
    def cost(desired: Desired, snapshot: Snapshot) -> float:
        def timed() -> float:
            begun = time.process_time()
            decide(snapshot, *desired.jobs)
            return time.process_time() - begun

        return min(timed() for _ in range(3))

    small, large = cost(*crowd(250, 125)), cost(*crowd(1000, 500))
    print(f"plan: 1,000 jobs on 500 nodes in {large * 1e3:.0f} ms, 250 on 125 in {small * 1e3:.0f} ms")
    assert large < 4 * 16 * small  # 16 times as many pairs, and room for noise


def _verbs(actions: tuple[Action, ...]) -> list[Verb]:
    return [action.verb for action in actions]


def test_actions_come_in_the_order_that_frees_before_it_takes() -> None:
    done, _ = running("done", "n0")
    snapshot = see([node("n0"), node("n1")], Attempt("done", 1, AttemptPhase.SUCCEEDED), Attempt("x", 1, RUNNING))
    assert _verbs(decide(snapshot, done, job("a", at=1)).actions) == [Verb.STOP, Verb.CLOSE, Verb.START]
