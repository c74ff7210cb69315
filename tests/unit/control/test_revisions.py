"""Revisions on a cluster of numbers: in every second, somebody who can answer is asked, and nobody who is leaving."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.control.revisions import PATIENCE_S, Aim, Memory, Rollout, Seen, rollout

START_S, STOP_S = 3, 2


@dataclass
class Fleet:
    """Places for ``room`` replicas. One starts where there is a place, answers START_S later, and holds its place for
    STOP_S after it was told to go. Revisions of ``broken`` never answer."""

    room: int
    broken: Collection[int] = ()
    now: float = 1000.0
    memory: Memory = field(default_factory=Memory)
    told: dict[int, int] = field(default_factory=dict)
    replicas: list[list[float]] = field(default_factory=list)  # revision, answers at, gone at
    log: list[Rollout] = field(default_factory=list)

    def of(self, revision: int) -> list[list[float]]:
        return [one for one in self.replicas if one[0] == revision]

    def staying(self, revision: int) -> list[list[float]]:
        return [one for one in self.of(revision) if one[2] == math.inf]

    def ready(self, revision: int) -> int:
        return sum(one[1] <= self.now for one in self.staying(revision))

    def seen(self) -> dict[int, Seen]:
        found = {}
        for revision in {int(one[0]) for one in self.replicas} | self.told.keys():
            target = self.told.get(revision, 0)
            found[revision] = Seen(target, len(self.of(revision)), self.ready(revision), revision not in self.told)
        return found

    def fits(self, without: Collection[int]) -> bool:
        return sum(one[0] not in without for one in self.replicas) < self.room

    def second(self, aim: Aim) -> Rollout:
        """One tick, and what follows from it."""
        done = rollout(aim, self.seen(), self.fits, self.memory, self.now)
        self.memory, self.told = done.memory, dict(done.replicas)
        self.check(done, aim)
        self.log.append(done)
        for one in self.replicas:
            if len(self.staying(int(one[0]))) > self.told.get(int(one[0]), 0) and one[2] == math.inf:
                one[2] = self.now + STOP_S
        self.now += 1
        self.replicas = [one for one in self.replicas if one[2] > self.now]
        for revision, count in self.told.items():
            while len(self.staying(revision)) < count and len(self.replicas) < self.room:
                answers = math.inf if revision in self.broken else self.now + START_S
                self.replicas.append([revision, answers, math.inf])
        return done

    def run(self, aim: Aim, seconds: int = 40) -> Rollout:
        for _ in range(seconds):
            done = self.second(aim)
        return done

    def check(self, done: Rollout, aim: Aim) -> None:
        """What holds in every second."""
        for revision in done.weights:
            assert self.ready(revision) and done.replicas.get(revision), "a request to one that leaves or cannot answer"
        if aim.count and any(self.ready(revision) for revision in done.replicas):
            assert sum(done.weights.values()) == pytest.approx(1), "nobody is asked, although somebody could answer"


def shares(fleet: Fleet) -> list[dict[int, float]]:
    """The shares of the requests, one after the other, without repetitions."""
    told = [dict(one.weights) for one in fleet.log]
    return [one for i, one in enumerate(told) if not i or one != told[i - 1]]


def test_a_new_revision_gets_the_requests_when_it_is_whole() -> None:
    fleet = Fleet(room=4)
    fleet.run(Aim(1, 2))
    done = fleet.run(Aim(2, 2, before=1, keep_s=20), 10)
    assert shares(fleet) == [{}, {1: 1.0}, {2: 1.0}]
    assert done.replicas == {2: 2, 1: 2}  # the one before stays warm
    assert fleet.run(Aim(2, 2, before=1, keep_s=20), 30).replicas == {2: 2}
    during = next(one for one in fleet.log if one.why)
    assert during.why == "revision 2 replaces 1: 0 of its 2 replicas answer" and not done.why


def test_a_rollback_is_a_matter_of_a_tick_while_the_one_before_is_warm() -> None:
    fleet = Fleet(room=4)
    fleet.run(Aim(1, 2))
    fleet.run(Aim(2, 2, before=1))
    assert fleet.second(Aim(1, 2, before=2)).weights == {1: 1.0}
    fleet.run(Aim(1, 2, before=2), 70)
    assert fleet.told == {1: 2}
    assert fleet.second(Aim(2, 2, before=1)).weights == {1: 1.0}  # no longer warm: it has to start
    assert fleet.run(Aim(2, 2, before=1)).weights == {2: 1.0}


def test_without_room_for_both_one_replica_after_another_is_replaced() -> None:
    fleet = Fleet(room=3)
    fleet.run(Aim(1, 3))
    fleet.log.clear()
    fleet.run(Aim(2, 3, before=1, keep_s=5), 90)
    assert fleet.told == {2: 3} and fleet.log[-1].weights == {2: 1.0}
    assert all(one.weights for one in fleet.log)  # somebody answered all the time
    parts = [one.weights.get(2, 0.0) for one in fleet.log]
    assert parts == sorted(parts) and {1 / 3, 2 / 3} <= {round(part, 9) for part in parts} | set(parts)
    answering = [sum(n for n in one.replicas.values()) for one in fleet.log]
    assert max(answering) <= 6


def test_the_only_replica_goes_when_there_is_no_room_for_another() -> None:
    fleet = Fleet(room=1)
    fleet.run(Aim(1, 1))
    fleet.log.clear()
    fleet.run(Aim(2, 1, before=1))
    assert shares(fleet) == [{}, {2: 1.0}]  # requests are held in between
    assert sum(not one.weights for one in fleet.log) <= STOP_S + START_S + 3


def test_what_could_never_start_replaces_nothing() -> None:
    fleet = Fleet(room=2)
    fleet.run(Aim(1, 2))
    fleet.fits = lambda without: False  # type: ignore[method-assign]  # not even if the old one went
    assert fleet.run(Aim(2, 2, before=1), 60).weights == {1: 1.0} and fleet.told == {1: 2, 2: 2}


def test_a_revision_that_never_answers_never_gets_a_request() -> None:
    fleet = Fleet(room=4, broken={2})
    fleet.run(Aim(1, 2))
    fleet.run(Aim(2, 2, before=1), 100)
    assert shares(fleet) == [{}, {1: 1.0}]
    fleet.run(Aim(3, 2, before=2), 20)
    assert shares(fleet) == [{}, {1: 1.0}, {3: 1.0}] and 2 not in fleet.told


def test_a_broken_first_revision_gives_its_room_to_its_successor() -> None:
    fleet = Fleet(room=1, broken={1})
    fleet.run(Aim(1, 1))
    assert fleet.run(Aim(2, 1, before=1)).weights == {2: 1.0}


def test_no_room_for_a_moment_costs_no_replica() -> None:
    """What starts may hold its room before anybody sees it there."""
    fleet = Fleet(room=2)
    fleet.run(Aim(1, 1))
    aim = Aim(2, 1, before=1)
    fleet.second(aim)
    fleet.replicas = [one for one in fleet.replicas if one[0] == 1]
    fleet.room = 1
    for _ in range(int(PATIENCE_S) - 1):
        assert fleet.second(aim).replicas[1] == 1
    fleet.room = 2
    fleet.run(aim, 20)
    assert all(1 in one.weights or 2 in one.weights for one in fleet.log[START_S + 2 :])


def test_a_canary_gets_its_share_and_its_promotion_needs_no_start() -> None:
    fleet = Fleet(room=8)
    fleet.run(Aim(1, 4))
    done = fleet.run(Aim(1, 4, canary=2, weight=0.3))
    assert done.replicas == {1: 4, 2: 2} and done.weights == {1: 0.7, 2: 0.3}
    assert fleet.second(Aim(1, 4, canary=2, weight=0.6)).weights == {1: 0.4, 2: 0.6}
    assert fleet.second(Aim(1, 4)).weights == {1: 1.0} and fleet.told[2] == 3  # until the front door knows
    fleet.run(Aim(1, 4))
    assert fleet.told == {1: 4}
    fleet.run(Aim(1, 4, canary=2, weight=0.9))
    fleet.log.clear()
    fleet.run(Aim(2, 4, before=1), 3)
    assert shares(fleet) == [{2: 1.0}]


def test_a_canary_that_dies_leaves_its_share_to_the_others_and_stands_in_for_them() -> None:
    fleet = Fleet(room=8)
    aim = Aim(1, 2, canary=2, weight=0.5)
    fleet.run(aim)
    kept = fleet.of(1)
    fleet.replicas = kept
    assert fleet.second(aim).weights == {1: 1.0}
    fleet.run(aim)
    fleet.replicas = fleet.of(2)
    assert fleet.second(aim).weights == {2: 1.0}


def test_the_one_before_stands_in_while_it_is_warm() -> None:
    fleet = Fleet(room=4)
    fleet.run(Aim(1, 2))
    aim = Aim(2, 2, before=1)
    fleet.run(aim, 20)
    fleet.replicas = fleet.of(1)
    assert fleet.second(aim).weights == {1: 1.0}
    assert fleet.run(aim, 10).weights == {2: 1.0}


def test_what_was_forgotten_is_found_again_in_what_is_deployed() -> None:
    fleet = Fleet(room=8)
    fleet.run(Aim(1, 4))
    aim = Aim(2, 4, before=1)
    fleet.run(aim, 2)
    fleet.memory = Memory()  # the control module was killed
    assert fleet.second(aim).weights == {1: 1.0}
    assert fleet.run(aim).weights == {2: 1.0}
    fleet.memory = Memory()
    assert fleet.second(aim).weights == {2: 1.0}


def test_at_zero_there_is_nothing_and_a_change_costs_nothing() -> None:
    fleet = Fleet(room=4)
    fleet.run(Aim(1, 2))
    assert fleet.run(Aim(1, 0), 10).replicas == {} and not fleet.replicas
    assert fleet.run(Aim(2, 0, before=1), 10).replicas == {}
    done = fleet.run(Aim(2, 1, before=1))
    assert done.replicas == {2: 1} and done.weights == {2: 1.0}


AIMS = st.builds(
    Aim,
    current=st.integers(1, 4),
    count=st.integers(0, 4),
    before=st.none() | st.integers(1, 4),
    canary=st.none() | st.integers(1, 4),
    weight=st.floats(0.01, 0.99),
    keep_s=st.sampled_from([0.0, 5.0, 60.0]),
)


@settings(max_examples=40, deadline=None)
@given(
    room=st.integers(1, 9),
    broken=st.sets(st.integers(1, 4), max_size=2),
    steps=st.lists(st.tuples(AIMS, st.integers(1, 25), st.booleans()), min_size=1, max_size=4),
)
def test_whatever_is_wanted_whoever_can_answer_is_asked(
    room: int, broken: set[int], steps: list[tuple[Aim, int, bool]]
) -> None:
    fleet = Fleet(room, broken)
    for aim, seconds, forget in steps:
        if forget:
            fleet.memory = Memory()
        fleet.run(aim, seconds)  # checks what holds in every second
    last = replace(steps[-1][0], canary=None)
    if last.current not in broken and 0 < last.count <= room:
        assert fleet.run(last, 120).weights == {last.current: 1.0}
        assert fleet.told[last.current] == last.count
