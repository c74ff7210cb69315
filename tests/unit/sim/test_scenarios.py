"""Each scenario in the documents shows what its rule says, breaks no invariant, and has a picture that is current."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml

from llmos.core.types import Desired, JobPhase, Order, Plan, Snapshot, Verb
from llmos.sim.chart import chart, looks_of
from llmos.sim.chronicle import Chronicle
from llmos.sim.invariants import violations
from llmos.sim.rehearsal import play
from llmos.sim.scenario import Scenario, read

DOCS = Path(__file__).parents[3] / "docs"
NAMES = sorted(path.stem for path in (DOCS / "scenarios").glob("*.yaml"))
MIN_S, HOUR_S = 60.0, 3600.0


@cache
def scenario(name: str) -> Scenario:
    return read(yaml.safe_load((DOCS / "scenarios" / f"{name}.yaml").read_text()))


@cache
def told(name: str) -> Chronicle:
    """What happens, every plan having been held against all invariants in which anything was new."""
    last: list[object] = [None]

    def watch(desired: Desired, snapshot: Snapshot, plan: Plan) -> None:
        new = (desired.jobs, desired.services, snapshot.attempts, snapshot.services, snapshot.nodes, plan.actions)
        if new != last[0]:
            last[0] = new
            assert not violations(desired, snapshot, plan)

    return play(scenario(name), watch)


def held(name: str, at_min: float, mine: Callable[[str], bool]) -> float:
    """GPUs that the jobs and services of which ``mine`` is so hold at a time."""
    blocks = told(name).blocks
    return sum(one.gpus for one in blocks if one.start_s <= at_min * MIN_S < one.end_s and mine(one.owner))


def started(name: str, job: str) -> float:
    """Minutes until the first attempt of a job starts."""
    at_s = told(name).lives[job].started_s
    assert at_s is not None
    return at_s / MIN_S


@pytest.mark.parametrize("name", NAMES)
def test_the_pictures_are_current_and_explained(name: str) -> None:
    document = chart(told(name), looks_of(scenario(name), told(name)))
    assert (DOCS / "pictures" / f"{name}.svg").read_text() == document, "run `make pictures`"
    page = (DOCS / "scheduler.md").read_text()
    assert f"](pictures/{name}.svg)" in page
    assert f"llmos simulate plan docs/scenarios/{name}.yaml" in page
    assert (DOCS / "scenarios" / f"{name}.yaml").read_text().startswith("# ")


def test_a_gang_lies_in_one_rack_and_takes_nothing_while_it_waits() -> None:
    gang = [block for block in told("gangs").blocks if block.owner == "gang"]
    assert {block.node for block in gang} == {"b-0", "b-1"} and {block.start_s for block in gang} == {40.5 * MIN_S}
    assert {block.node for block in told("gangs").blocks if block.owner == "spread"} == {"a-1", "b-1"}
    assert {block.node for block in told("gangs").blocks if block.owner == "packed"} == {"a-1"}
    assert "in one rack; 4 GPUs free" in told("gangs").lives["gang"].why


def test_teams_come_to_have_what_their_shares_say() -> None:
    used = {"s": 0.0, "p": 0.0, "r": 0.0}
    for block in told("fairness").blocks:
        used[block.owner[0]] += block.gpus * max(min(block.end_s, 5 * HOUR_S) - max(block.start_s, 2 * HOUR_S), 0.0)
    whole = sum(used.values())
    assert whole == pytest.approx(12 * 3 * HOUR_S, rel=0.01)
    assert [used[team] / whole for team in "spr"] == pytest.approx([1 / 6, 2 / 6, 3 / 6], abs=0.02)


def test_limits_hold_although_gpus_are_idle() -> None:
    for minute in range(120):
        assert held("limits", minute, lambda id: id.startswith("q")) <= 4
        assert held("limits", minute, lambda id: id.startswith("b-")) <= 6
    assert held("limits", 10, lambda _: True) == 10
    assert told("limits").lives["x-0"].waited_s == 0
    assert "quota of 4 GPUs" in told("limits").lives["q-9"].why
    assert "may borrow" in told("limits").lives["b-9"].why


def test_a_gang_starts_no_later_with_small_jobs_than_without() -> None:
    asked = scenario("backfill")
    few = replace(asked, works=tuple(work for work in asked.works if work.group in ("long", "gang")))
    assert told("backfill").lives["gang"].started_s == play(few).lives["gang"].started_s
    gang = started("backfill", "gang")
    assert [started("backfill", f"short-{i}") < gang for i in range(8)] == [True] * 5 + [False] * 3
    assert all(started("backfill", f"hour-{i}") > gang for i in range(2))


def test_jobs_start_when_it_was_said_although_nobody_knows_how_long_others_run() -> None:
    waited = [life for life in told("estimates").lives.values() if life.waited_s]
    assert len(waited) == 4
    for life in waited:
        assert life.said_s and life.started_s is not None and life.why.startswith("needs ")
        likely_s, high_s = life.said_s
        assert abs(life.started_s - likely_s) <= 10.5 * MIN_S and life.started_s < high_s


def test_the_job_that_loses_least_gives_way_and_goes_on_first() -> None:
    lives = told("preemption").lives
    assert {id: life.stops for id, life in lives.items() if life.stops} == {"fresh": 1}
    fresh = [block for block in told("preemption").blocks if block.owner == "fresh"]
    assert len(fresh) == 2 and fresh[0].asked_s == 45 * MIN_S and not fresh[0].failed
    assert fresh[0].end_s == 47 * MIN_S == lives["urgent"].started_s  # its grace is not used up
    assert lives["next"].submitted_s < fresh[1].start_s < (lives["next"].started_s or 0.0)
    # nothing but saving and starting again is lost: 80 minutes of work in all
    assert fresh[1].end_s - fresh[1].start_s == (80 * MIN_S + 30) - (45 * MIN_S - 30)


def test_holes_come_together_for_a_gang() -> None:
    lives = told("gather").lives
    assert {id for id, life in lives.items() if life.stops} == {"small-0", "small-1"}
    assert started("gather", "gang") == 26
    assert max(lives[id].waited_s for id in ("small-0", "small-1")) == 0  # they go on as soon as they have ended
    in_vain = play(replace(scenario("gather"), order=Order.FIFO)).lives["gang"]
    assert (in_vain.started_s or 0.0) > 90 * MIN_S


def test_an_elastic_job_grows_into_what_is_idle_and_shrinks_for_who_waits() -> None:
    sizes = [held("elastic", minute, lambda id: id == "elastic") for minute in (10, 60, 100, 150)]
    assert sizes == [3, 8, 4, 8]
    assert told("elastic").lives["gang"].waited_s == MIN_S


def test_a_service_gets_back_what_it_lends() -> None:
    for minute, count in ((70, 1), (83, 3), (103, 5), (160, 3), (200, 1)):
        assert held("lending", minute, lambda id: id == "chat") == count
        assert held("lending", minute, lambda id: id.startswith(("pinned", "chat"))) <= 8
    assert all(held("lending", minute, lambda id: id.startswith("pinned")) <= 2 for minute in range(240))
    assert "may not be preempted" in told("lending").lives["pinned-1"].why
    assert not told("lending").lives["pinned-0"].stops and not told("lending").lives["pinned-1"].stops


def test_what_comes_after_waits_for_success_and_fails_with_failure() -> None:
    lives = told("dependencies").lives
    assert lives["train"].started_s == lives["prepare-1"].ended_s
    assert lives["evaluate"].started_s == lives["train"].ended_s
    assert lives["clean"].ended_s == lives["finetune"].ended_s == lives["publish"].ended_s
    assert lives["publish"].phase is JobPhase.FAILED and lives["publish"].started_s is None
    assert lives["publish"].end == "finetune, which it comes after, failed"


def test_a_node_that_kills_jobs_is_closed_and_work_of_a_lost_node_goes_on() -> None:
    starts = {(action.id, node): at for at, action in told("failures").events if action.verb is Verb.START
              for node in action.nodes}  # fmt: skip
    on_broken = sorted(at for (_, node), at in starts.items() if node == "node-0")
    assert on_broken[:2] == [0.0, 0.0] and on_broken[2] >= HOUR_S + 70
    (closed,) = told("failures").shut
    assert (closed.of, closed.start_s) == ("node-0", 72.0)  # two seconds after they failed, when they are tried again
    lives = told("failures").lives
    assert [lives[id].failures for id in "abcd"] == [1, 1, 0, 0]  # the node was lost: no failure of the job's
    assert lives["a"].ended_s == 30 * MIN_S + 10 + (60 - 20) * MIN_S  # two checkpoints were kept


def test_nodes_come_for_a_gang_and_go_again() -> None:
    def there(minute: float) -> int:
        return sum(span.start_s <= minute * MIN_S < span.end_s for span in told("nodes").there)

    assert [there(minute) for minute in (10, 30, 65, 75, 110)] == [1, 4, 4, 1, 1]
    assert started("nodes", "gang") == pytest.approx(15 + 4, abs=1)
    drained = {span.of for span in told("nodes").shut}
    assert drained == {"gpu-1", "gpu-2", "gpu-3"}
    assert not [block for block in told("nodes").blocks if block.failed or block.asked_s]


def test_a_job_that_is_killed_goes_on_from_its_last_checkpoint() -> None:
    asked = scenario("preemption")
    slow = replace(asked, stop_s=10 * MIN_S)  # more than the grace of three minutes
    first, second = (block for block in play(slow).blocks if block.owner == "fresh")
    assert first.failed and first.end_s >= 48 * MIN_S
    assert second.end_s - second.start_s == (80 * MIN_S + 30) - 40 * MIN_S
