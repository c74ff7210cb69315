"""The scheduler's decisions on services, which take their room before jobs do."""

from __future__ import annotations

from typing import Any

import pytest

from llmos.core.types import Gang, Resources, Service, ServiceStatus
from tests.unit.core.values import cpus, decide, job, node, running, see, told


def service(id: str = "coder", replicas: int = 1, gang: Gang | None = None, **fields: Any) -> Service:
    return Service(id, fields.pop("digest", "v1"), gang or cpus(1), replicas, **fields)


def status(id: str = "coder", target: int = 1, nodes: tuple[str, ...] = (), **fields: Any) -> ServiceStatus:
    return ServiceStatus(id, fields.pop("digest", "v1"), target, len(nodes), nodes=nodes, **fields)


NODES = [node("n0"), node("n1")]


@pytest.mark.parametrize(
    ("wanted", "seen", "expected"),
    [
        ((service(),), (), ["deploy coder x1"]),
        ((service(),), (status(nodes=("n0",)),), []),
        ((service(),), (status(),), []),  # its replica is still coming
        ((service(replicas=2),), (status(nodes=("n0",)),), ["deploy coder x2"]),
        ((service(replicas=1),), (status(target=2, nodes=("n0", "n1")),), ["deploy coder x1"]),
        ((service(digest="v2"),), (status(nodes=("n0",)),), ["deploy coder x1"]),
        ((service(),), (status(nodes=("n0",), removing=True),), []),  # again, once the old one is gone
        ((), (status(nodes=("n0",)),), ["remove coder"]),
        ((), (status(nodes=("n0",), removing=True),), []),
        (
            (service("b", created_at=1), service("a", created_at=2)),
            (status("z"), status("y")),
            ["remove y", "remove z", "deploy b x1", "deploy a x1"],
        ),
    ],
)
def test_deployments_come_to_be_as_desired(
    wanted: tuple[Service, ...], seen: tuple[ServiceStatus, ...], expected: list[str]
) -> None:
    assert told(decide(see(NODES, services=seen), services=wanted)) == expected


def test_the_reasons_for_deployments() -> None:
    def why(wanted: Service, *seen: ServiceStatus) -> str:
        return decide(see(NODES, services=seen), services=(wanted,)).actions[0].why

    assert why(service(replicas=2)) == "not deployed; 2 replica(s) wanted"
    assert why(service(digest="v2"), status()) == "its spec changed"
    assert why(service(replicas=3), status()) == "replicas 1 -> 3"


def test_a_service_takes_its_room_before_any_job() -> None:
    made = decide(see([node("n0", 1), node("n1", 1)]), job("a"), job("b", at=1), services=(service(),))
    assert told(made) == ["deploy coder x1", "start a-1 on n1"]
    assert made.waiting == {"b": "needs 1 bundle of 1 CPU; 0 CPUs free of 2 on 2 nodes"}


def test_replicas_that_are_there_hold_their_nodes_and_missing_ones_are_kept_room_for() -> None:
    wanted = service(replicas=2, gang=cpus(1, 1))
    seen = status(target=2, nodes=("n0", "n0"))
    assert told(decide(see(NODES, services=(seen,)), job("a"), services=(wanted,))) == []
    both = status(target=2, nodes=("n0", "n0", "n1", "n1"))
    three = [*NODES, node("n2")]
    assert told(decide(see(three, services=(both,)), job("a"), services=(wanted,))) == ["start a-1 on n2"]


def test_a_surplus_replica_holds_its_node_until_it_is_gone() -> None:
    seen = status(nodes=("n0", "n1"))
    made = decide(see([node("n0", 1), node("n1", 1)], services=(seen,)), job("a"), services=(service(),))
    assert told(made) == []
    assert made.waiting == {"a": "needs 1 bundle of 1 CPU; 0 CPUs free of 2 on 2 nodes"}


def test_a_service_that_waits_for_room_goes_before_all_jobs() -> None:
    busy, attempt = running("busy", "n0", "n0")
    small = [node("n0"), node("n1", 1)]
    made = decide(see(small, attempt), busy, job("a", at=1), services=(service(gang=cpus(2)),))
    assert told(made) == ["deploy coder x1"]
    assert made.waiting == {"a": "needs 1 bundle of 1 CPU; 1 CPU free of 3 on 2 nodes; behind service coder"}


def test_a_service_that_could_never_fit_blocks_nobody() -> None:
    made = decide(see(NODES), job("a"), services=(service(gang=cpus(9)),))
    assert told(made) == ["deploy coder x1", "start a-1 on n0"]


def test_a_job_that_services_leave_no_room_for_blocks_nobody() -> None:
    wanted, seen = service(replicas=2), status(target=2, nodes=("n0", "n1"))
    jobs = (job("big", cpus(2), at=1), job("small", at=2))
    made = decide(see(NODES, services=(seen,)), *jobs, services=(wanted,))
    assert told(made) == ["start small-1 on n0"]
    assert made.waiting == {
        "big": "needs 1 bundle of 2 CPUs; cannot start while services hold their share: they leave 2 CPUs"
    }


@pytest.mark.parametrize(
    ("wanted", "seen"),
    [
        ((), status(nodes=("n0",))),
        ((), status(nodes=("n0",), removing=True)),
        ((service(digest="v2", gang=Gang((Resources(cpus=0.1),))),), status(nodes=("n0",))),
    ],
)
def test_nothing_starts_where_an_unwanted_deployment_still_is(wanted: tuple[Service, ...], seen: ServiceStatus) -> None:
    made = decide(see(NODES, services=(seen,)), job("a"), job("b", at=1), job("c", cpus(2), at=2), services=wanted)
    assert {node for action in made.actions for node in action.nodes} == {"n1"}
