"""Jobs and services on the same GPUs: services get theirs in time, jobs what is left, and nothing is held twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llmos.core.replicas import Promises, Rates
from llmos.errors import DataError, SpecError
from llmos.sim.cluster_spec import read
from llmos.sim.cluster_twin import Result, twin
from llmos.sim.faults import Faults
from llmos.sim.fleet import Fleet, Plans
from llmos.sim.job_replay import Stay, World
from llmos.sim.job_traces import TraceJob
from llmos.sim.pool import Pool
from llmos.sim.request_traces import Request

RATES = Rates(prompt_tokens_per_s=10_000, step_s=0.02, sequence_s=0.0, most=4, start_s=60)
HOUR_S = 3600.0


def _fleet(requests: list[Request], bounds: tuple[int, int] = (1, 6)) -> Fleet:
    return Fleet(Plans("chat", 1, bounds, Promises(first_token_s=2.0, token_s=0.05), RATES), requests)


def _steady(per_s: float, until_s: float, from_s: float = 0.0) -> list[Request]:
    return [Request(from_s + i / per_s, 100, 50) for i in range(int(per_s * (until_s - from_s)))]


def _elastic(count: int, gpus: int = 8) -> list[TraceJob]:
    return [TraceJob(f"job-{i}", 0.0, 10 * HOUR_S, gpus, f"t{i}", "k", 1) for i in range(count)]


def _most_held(stays: tuple[Stay, ...]) -> dict[int, int]:
    """The most GPUs that were held at once, by node."""
    changes = [(at, gpus, node) for stay in stays for node, held in stay.placement
               for at, gpus in ((stay.start_s, held), (stay.end_s, -held))]  # fmt: skip
    now: Counter[int] = Counter()
    most: Counter[int] = Counter()
    for _, gpus, node in sorted(changes):
        now[node] += gpus
        most[node] = max(most[node], now[node])
    return dict(most)


def test_a_service_grows_with_its_load_and_takes_the_gpus_from_elastic_jobs() -> None:
    # a request holds one of four places for 1.01 s: 12 a second need more than three replicas
    load = _steady(1, HOUR_S) + _steady(12, 2 * HOUR_S, HOUR_S) + _steady(1, 3 * HOUR_S, 2 * HOUR_S)
    found = twin(_elastic(2), [_fleet(load)], 2, 8, 3 * HOUR_S)
    chat = found.services["chat"]
    assert chat["requests"] == len(load)
    assert (chat["attained_pct"] or 0) > 95
    assert 2 < (chat["mean_replicas"] or 0) < 4
    assert (found.jobs["utilisation_pct"] or 0) > 80 and (found.jobs["goodput_pct"] or 0) > 70
    assert max(_most_held(found.stays).values()) <= 8


def test_a_service_gets_back_what_jobs_that_cannot_shrink_were_lent() -> None:
    load = _steady(1, HOUR_S) + _steady(12, 2 * HOUR_S, HOUR_S)
    jobs = [TraceJob(f"job-{i}", 0.0, 10 * HOUR_S, 7, f"t{i}", "k") for i in range(3)]
    found = twin(jobs, [_fleet(load)], 2, 8, 2 * HOUR_S)
    chat = found.services["chat"]
    assert (chat["attained_pct"] or 0) > 95 and (chat["mean_replicas"] or 0) > 2
    assert found.jobs["preemptions"] == 1  # of seven GPUs, which are enough
    assert max(_most_held(found.stays).values()) <= 8


def test_what_is_done_is_never_more_than_what_was_held() -> None:
    found = twin(_elastic(3), [_fleet(_steady(4, HOUR_S))], 2, 8, HOUR_S)
    held = sum((stay.end_s - stay.start_s) * gpus for stay in found.stays if stay.tenant != "chat"
               for _, gpus in stay.placement)  # fmt: skip
    assert (found.jobs["goodput_pct"] or 0) <= 100 * held / (16 * HOUR_S) + 0.01


def test_a_lost_node_takes_replicas_and_jobs_with_it_and_both_come_back() -> None:
    steady = _steady(8, 2 * HOUR_S)
    calm = twin(_elastic(2), [_fleet(steady)], 4, 8, 2 * HOUR_S)
    rough = twin(_elastic(2), [_fleet(steady)], 4, 8, 2 * HOUR_S, Faults(0, failures_per_day=72.0, repair_s=900.0))
    assert calm.jobs["failures"] == 0 and (rough.jobs["failures"] or 0) > 0
    assert (rough.services["chat"]["starts"] or 0) > (calm.services["chat"]["starts"] or 0)
    assert (rough.services["chat"]["attained_pct"] or 0) > 50
    assert max(_most_held(rough.stays).values()) <= 8


def test_jobs_alone_and_services_alone() -> None:
    jobs = [TraceJob("a", 10.0, 100.0, 4, "t", "k"), TraceJob("b", 20.0, 100.0, 8, "t", "k")]
    alone = twin(jobs, [], 1, 8, HOUR_S)
    assert alone.jobs["jobs"] == 2 and alone.services == {}
    assert (alone.jobs["goodput_pct"] or 0) == pytest.approx(100 * 1200 / (8 * HOUR_S))
    served = twin([], [_fleet(_steady(2, HOUR_S))], 1, 8, HOUR_S)
    assert served.jobs["jobs"] == 0 and (served.services["chat"]["attained_pct"] or 0) > 95


def test_requests_that_nobody_answers_in_time_are_counted() -> None:
    found = twin([], [_fleet(_steady(40, 600.0), (1, 1))], 1, 8, 600.0)
    chat = found.services["chat"]
    assert chat["requests"] == 24_000
    assert (chat["attained_pct"] or 0) < 30


def test_a_fleet_answers_in_order_and_loses_no_request() -> None:
    fleet = _fleet([Request(0.0, 100, 50)] * 9)
    fleet.serve(10.0)
    assert (fleet.answered, fleet.unanswered()) == (0, 9)  # there is no replica
    assert fleet.status() is None and fleet.desired().replicas == 1


def test_a_replica_that_is_to_go_answers_what_it_has_first() -> None:
    fleet, world = _fleet([Request(100.0, 100, 50)], (0, 6)), World(Pool(1, 8))
    fleet.target = 1
    assert fleet.deploy(world, ["n0"]) and world.pool.idle == 7
    world.advance(100.0)
    fleet.serve(100.0)
    fleet.target = None
    assert fleet.deploy(world, ["n0"]) and world.pool.idle == 7
    status = fleet.status()
    assert status and status.removing and status.nodes == ("n0",)  # so nobody is placed there yet
    world.advance(100.9)
    assert not fleet.release(world)
    world.advance(101.1)
    assert fleet.release(world) and world.pool.idle == 8 and fleet.status() is None
    assert (fleet.answered, fleet.kept) == (1, 1)


def test_a_replica_that_still_starts_goes_at_once_and_before_others() -> None:
    fleet, world = _fleet([Request(100.0, 100, 50)], (0, 6)), World(Pool(1, 8))
    for fleet.target, at in ((1, 0.0), (2, 90.0), (1, 100.0)):
        world.advance(at)
        fleet.serve(at)
        fleet.deploy(world, ["n0"])
    assert world.pool.idle == 7 and fleet.replicas[0].since_s == 0.0 and fleet.answered == 1


SPEC: dict[str, Any] = {
    "nodes": 2,
    "per_node": 8,
    "hours": 0.2,
    "jobs": {"count": 2, "gpus": 8, "fewest": 1, "hours": 2},
    "services": [
        {
            "name": "chat",
            "trace": "azure.csv",
            "replicas": {"min": 1, "max": 4},
            "promises": {"first_token_s": 1},
            "rates": {"prompt_tokens_per_s": 8000, "step_s": 0.02, "most": 8, "start_s": 30},
        }
    ],
}
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6,374,44\n2023-11-16 18:15:56.6,374,44\n"


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    (tmp_path / "azure.csv").write_text(AZURE)
    return tmp_path


def _run(value: object, directory: Path) -> Result:
    asked = read(value, directory)
    return twin(asked.jobs, asked.fleets, asked.nodes, asked.per_node, asked.until_s)


def test_a_spec_is_what_it_says_and_can_be_repeated(traces: Path) -> None:
    asked = read(SPEC, traces)
    assert (asked.nodes, asked.per_node, asked.until_s, len(asked.jobs)) == (2, 8, 720.0, 2)
    assert asked.jobs[1] == TraceJob("job-1", 0.0, 7200.0, 8, "tenant-1", "equal", 1)
    (fleet,) = asked.fleets
    assert fleet.plans == Plans("chat", 1, (1, 4), Promises(first_token_s=1), Rates(8000, 0.02, 0.0, 8, 30))
    assert len(fleet.requests) == pytest.approx(720 / 10 * 2, abs=2)
    assert _run(SPEC, traces) == _run(SPEC, traces)


def test_fewer_requests_come_at_night(traces: Path) -> None:
    swings = {**SPEC, "hours": 24, "services": [{**SPEC["services"][0], "swing": 0.8}]}
    (fleet,) = read(swings, traces).fleets
    hours = [request.at_s / HOUR_S for request in fleet.requests]
    assert 3 < sum(11 <= hour < 13 for hour in hours) / sum(hour < 2 for hour in hours) < 7


def test_a_spec_may_name_a_trace_of_jobs(traces: Path) -> None:
    (traces / "jobs.csv").write_text("timestamp,duration,num_gpus,gpu_time,cluster\n0,60,4,240,east\nx,1,1,1,east\n")
    value = {"nodes": 1, "hours": 1, "jobs": {"trace": "jobs.csv"}}
    with pytest.raises(DataError, match="line 3"):
        read(value, traces)
    asked = read(value, traces, skip_bad_rows=True)
    assert len(asked.jobs) == 1 and [row.line for _, row in asked.bad] == [3]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([], "spec: expected a mapping of nodes, per_node"),
        ({**SPEC, "node": 1}, "spec: `node` is not known; did you mean `nodes`?"),
        ({**SPEC, "nodes": 0}, "spec: nodes is 0: expected a number of at least 1"),
        ({**SPEC, "nodes": 1.5}, "spec: nodes is 1.5: expected a whole number"),
        ({**SPEC, "jobs": {"count": 1, "gpus": 2, "fewest": 4}}, "fewest is 4, gpus 2"),
        ({**SPEC, "services": {}}, "services: expected a list"),
        ({**SPEC, "services": [{**SPEC["services"][0], "replicas": {"min": 5, "max": 2}}]}, "min is 5, max 2"),
        ({**SPEC, "services": [{**SPEC["services"][0], "rates": {}}]}, "services[0].rates: most is None"),
        ({**SPEC, "services": SPEC["services"] * 2}, "services: chat is there twice"),
        ({**SPEC, "services": [{**SPEC["services"][0], "trace": ""}]}, "services[0]: trace is missing"),
        ({**SPEC, "services": [{**SPEC["services"][0], "swing": 2}]}, "services[0]: swing is 2: expected at most 1"),
    ],
)
def test_all_that_is_wrong_with_a_spec_is_said(traces: Path, value: object, problem: str) -> None:
    with pytest.raises(SpecError) as error:
        read(value, traces)
    assert problem in str(error.value)
