"""Jobs take the room that nobody waits for, and give it back; no attempt ends for nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmos.core.placement import fits, place
from llmos.core.types import Action, Attempt, AttemptPhase, Gang, Job, Node, Resources, Service, Verb
from llmos.sim.cluster import Outcome, SimCluster
from llmos.sim.simulation import Simulation
from tests.unit.core.values import LOST, NOW, RUNNING, cpus, decide, job, node, running, see, told


def elastic(id: str, most: int, fewest: int = 1, at: float = 0.0, **fields: object) -> Job:
    sizes = [cpus(*[1] * n) for n in range(fewest, most + 1)]
    return job(id, sizes[0], at, larger=tuple(sizes[1:]), **fields)  # type: ignore[arg-type]


def runs(mine: Job, *nodes: str, phase: AttemptPhase = RUNNING, **fields: object) -> tuple[Job, Attempt]:
    """``mine`` with a living attempt on ``nodes``, opened a long time ago."""
    mine = replace(mine, attempt=1, attempts=1, placement=nodes)
    return mine, Attempt(mine.id, 1, phase, nodes=nodes, **fields)  # type: ignore[arg-type]


def test_a_job_starts_on_as_many_workers_as_fit() -> None:
    assert told(decide(see([node("n0", 3)]), elastic("a", 8))) == ["start a-1 on n0 n0 n0"]
    assert told(decide(see([node("n0", 3)]), elastic("a", 2))) == ["start a-1 on n0 n0"]
    assert told(decide(see([node("n0", 3)]), elastic("a", 8, fewest=4))) == []


def test_everybody_gets_the_fewest_before_anybody_gets_more() -> None:
    made = decide(see([node("n0", 4)]), elastic("a", 8), elastic("b", 8, at=1))
    assert told(made) == ["start a-1 on n0 n0 n0", "start b-1 on n0"]
    crowded = decide(see([node("n0", 4)]), elastic("a", 8), job("big", cpus(4), at=1))
    assert told(crowded) == ["start a-1 on n0"]


def test_a_job_grows_when_there_is_room_and_nobody_waits() -> None:
    mine, attempt = runs(elastic("a", 4), "n0")
    (grow,) = decide(see([node("n0", 3)], attempt), mine).actions
    assert (grow.verb, grow.why) == (Verb.STOP, "grows from 1 worker to 3: there is room")
    young = replace(mine, opened_at=NOW - mine.grow_every_s + 1)
    assert told(decide(see([node("n0", 3)], attempt), young)) == []
    assert told(decide(see([node("n0", 1)], attempt), mine)) == []
    assert told(decide(see([node("n0", 3)], replace(attempt, phase=AttemptPhase.STARTING)), mine)) == []
    waiting = job("big", cpus(3), at=1)
    assert told(decide(see([node("n0", 3)], attempt), mine, waiting)) == []
    never = job("huge", cpus(9), at=1)
    assert told(decide(see([node("n0", 3)], attempt), mine, never)) == ["stop a-1"]


def test_one_job_grows_at_a_time_the_oldest_first() -> None:
    (a, seen_a), (b, seen_b) = runs(elastic("a", 2), "n0"), runs(elastic("b", 2, at=1), "n0")
    snapshot = see([node("n0", 3)], seen_a, seen_b)
    assert told(decide(snapshot, b, a)) == ["stop a-1"]
    asked = see([node("n0", 3)], replace(seen_a, stopping_since=NOW), seen_b)
    assert told(decide(asked, a, b)) == []


def test_what_yielded_goes_on_larger_under_the_next_number() -> None:
    mine, _ = runs(elastic("a", 4), "n0")
    done = Attempt("a", 1, AttemptPhase.YIELDED)
    assert told(decide(see([node("n0", 3)], done), mine)) == ["close a-1 queued", "start a-2 on n0 n0 n0"]


def test_the_youngest_gives_up_what_the_first_in_the_queue_needs() -> None:
    (a, seen_a), (b, seen_b) = runs(elastic("a", 2), "n0", "n0"), runs(elastic("b", 2, at=1), "n0", "n0")
    snapshot = see([node("n0", 4)], seen_a, seen_b)
    (shrink,) = decide(snapshot, a, b, job("new", at=2)).actions
    assert (shrink.id, shrink.why) == ("b", "shrinks from 2 workers: room for new")
    assert told(decide(snapshot, a, b, job("new", cpus(1, 1), at=2))) == ["stop b-1", "stop a-1"]
    assert told(decide(snapshot, a, b, job("new", cpus(3), at=2))) == []  # not even both would be enough
    asked = see([node("n0", 4)], seen_a, replace(seen_b, stopping_since=NOW))
    assert told(decide(asked, a, b, job("new", at=2))) == []  # enough is on its way
    ended = see([node("n0", 4)], seen_a, Attempt("b", 1, AttemptPhase.YIELDED))
    assert told(decide(ended, a, b, job("new", at=2))) == ["close b-1 queued", "start b-2 on n0", "start new-1 on n0"]


def test_those_shrink_first_to_whom_more_workers_are_worth_least() -> None:
    (a, seen_a), (b, seen_b) = runs(elastic("a", 2), "n0", "n0"), runs(elastic("b", 2, at=1), "n0", "n0")
    snapshot = see([node("n0", 4)], seen_a, seen_b)
    scales = ((1, 10.0), (2, 19.0))  # the second worker adds nine tenths
    stuck = ((1, 500.0), (2, 600.0))  # or a fifth, of a job whose steps count for more
    assert told(decide(snapshot, replace(a, goodput=stuck), replace(b, goodput=scales), job("new", at=2))) == [
        "stop a-1"
    ]
    assert told(decide(snapshot, replace(a, goodput=scales), replace(b, goodput=stuck), job("new", at=2))) == [
        "stop b-1"
    ]


def test_only_those_end_who_help() -> None:
    (a, seen_a), (b, seen_b) = runs(elastic("a", 3), "n0", "n0", "n0"), runs(elastic("b", 2, at=1), "n1", "n1")
    made = decide(see([node("n0", 3), node("n1", 2)], seen_a, seen_b), a, b, job("new", cpus(2), at=2))
    assert told(made) == ["stop a-1"]  # what b could give is one CPU on another node


def test_nobody_shrinks_below_its_fewest() -> None:
    mine, attempt = runs(elastic("a", 4, fewest=2), "n0", "n0")
    assert told(decide(see([node("n0", 2)], attempt), mine, job("new", at=1))) == []


def test_a_service_gets_room_in_the_same_way() -> None:
    mine, attempt = runs(elastic("a", 2), "n0", "n0")
    (shrink, deploy) = decide(see([node("n0", 2)], attempt), mine, services=(Service("s", "1", cpus(1), 1),)).actions
    assert (shrink.verb, shrink.why, deploy.verb) == (
        Verb.STOP, "shrinks from 2 workers: room for service s", Verb.DEPLOY,
    )  # fmt: skip


def test_jobs_move_off_a_node_that_is_about_to_go() -> None:
    mine, attempt = running("a", "n0")
    (move,) = decide(see([node("n0", draining=True), node("n1")], attempt), mine).actions
    assert (move.verb, move.why) == (Verb.STOP, "moves: node n0 is about to go")
    asked = replace(attempt, stopping_since=NOW)
    assert told(decide(see([node("n0", draining=True), node("n1")], asked), mine)) == []


def test_what_does_not_yield_within_its_grace_is_killed_and_that_is_no_failure() -> None:
    mine, attempt = runs(elastic("a", 2, grace_s=10.0), "n0", "n0", stopping_since=NOW - 10)
    assert told(decide(see([node("n0")], attempt), mine)) == ["stop a-1 by force"]
    assert told(decide(see([node("n0")], replace(attempt, stopping_since=NOW - 9)), mine)) == []
    killed = decide(see([node("n0")], replace(attempt, phase=LOST)), mine)
    assert told(killed) == ["close a-1 queued", "start a-2 on n0 n0"] and not killed.actions[0].failed


def test_an_attempt_that_never_began_starts_again_as_large_as_it_was_unless_others_wait() -> None:
    mine = elastic("a", 4, attempt=1, attempts=1, placement=("n0", "n0", "n0"))
    assert told(decide(see([node("n0", 4)]), mine)) == ["start a-1 on n0 n0 n0"]
    assert told(decide(see([node("n0", 4)]), mine, job("b", at=1))) == ["start a-1 on n0 n0 n0", "start b-1 on n0"]
    assert told(decide(see([node("n0", 4)]), mine, job("b", cpus(4), at=1))) == ["start a-1 on n0"]


@pytest.mark.parametrize(
    ("gang", "free", "expected"),
    [
        (Gang((Resources(cpus=1),) * 4, together=2), {"a": 3, "b": 2}, ("b", "b", "a", "a")),
        (Gang((Resources(cpus=1),) * 4, together=4), {"a": 3, "b": 3}, None),
        (Gang((Resources(cpus=1),) * 4, together=1), {"a": 3, "b": 3}, ("a", "a", "a", "b")),
    ],
)
def test_tensor_parallel_ranks_share_a_node(
    gang: Gang, free: dict[str, float], expected: tuple[str, ...] | None
) -> None:
    assert place(gang, {id: Resources(cpus=amount) for id, amount in free.items()}) == expected
    room = {id: Resources(cpus=9) for id in free}
    assert not fits(Gang((Resources(cpus=1),) * 2, together=2), ("a", "b"), room)
    waiting = decide(see([node("n0", 3)]), job("wide", Gang((Resources(cpus=1),) * 4, 4))).waiting["wide"]
    assert "every 4 on one node" in waiting


def test_resizes_are_bounded_however_jobs_come_and_go() -> None:
    """A long elastic job beside short ones that come and go all the time: at most one growth a minute, and no more
    shrinking than there are newcomers."""
    sim = SimCluster([Node("n0", Resources(cpus=4))], lambda id, _: Outcome(1e4 if id == "long" else 15.0))
    simulation = Simulation(sim)
    simulation.submit(elastic("long", 4))
    for i in range(20):
        simulation.run(until=25.0 * (i + 1), interval_s=1.0)
        simulation.submit(job(f"j{i}"))
    simulation.run(until=700.0, interval_s=1.0)
    stops = [action for _, action in simulation.history if action.verb is Verb.STOP]
    starts = [(at, len(a.nodes)) for at, a in simulation.history if a.id == "long" and a.verb is Verb.START]
    grown = [action for action in stops if action.why.startswith("grows")]
    shrunk = [action for action in stops if action.why.startswith("shrinks")]
    assert all(isinstance(action, Action) and action.id == "long" for action in stops)
    assert 1 <= len(grown) <= 700 / 60 and 1 <= len(shrunk) <= 20
    assert starts[0][1] == starts[-1][1] == 4 and min(size for _, size in starts) >= 1
    assert len(simulation.ended) == 20
