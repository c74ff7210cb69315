"""From specs to what the scheduler decides on."""

from __future__ import annotations

from llmos.control.translate import asked, deployment_digest, replica_gang, replica_groups, tenant
from llmos.core.types import Gang, Resources, Strategy, Tenant
from llmos.spec import Mesh, Service, TrainFunction, parse
from llmos.spec import Resources as ResourcesSpec
from llmos.spec import Tenant as TenantSpec


def test_a_replica_holds_what_its_ranks_do_and_those_that_share_layers_share_a_node() -> None:
    each = ResourcesSpec(cpus=2, gpus=1, memory=2**30)
    service = Service(name="s", model="m", mesh=Mesh(tp=2, pp=3), resources=each)
    assert replica_gang(service) == Gang((Resources(2, 1, 2**30),) * 6, together=2)
    assert replica_groups(service) == (Resources(4, 2, 2 * 2**30),) * 3
    assert replica_gang(Service(name="s", model="m")) == Gang((Resources(1.0),))
    assert replica_groups(Service(name="s", model="m")) == (Resources(1.0),)


def test_vllm_has_all_its_ranks_on_one_node() -> None:
    service = Service(name="s", model="m", mesh=Mesh(tp=2, pp=3), engine="vllm")
    assert replica_gang(service) == Gang((Resources(1.0),) * 6, together=6)
    assert replica_groups(service) == (Resources(6.0),)


def test_replicas_of_an_earlier_llmos_stay() -> None:
    """The digest of what it deployed is that of the same spec today: nothing starts anew after an upgrade."""
    spec = parse({"kind": "Service", "name": "s", "model": "m@1"})
    assert isinstance(spec, Service)
    assert deployment_digest(spec) == "fff50097c211517066006df104ad85d56b19d9a4432284b1fc3b9761c8486fc8"


def test_a_job_is_asked_for_as_its_spec_says() -> None:
    spec = parse(
        {
            **{"kind": "TrainFunction", "name": "mine", "function": {"call": "loop:main"}, "steps": 10},
            **{"tenant": "vision", "priority": 3, "after": ["a-1"], "expected_runtime": 60, "preemptible": False},
            **{"workers": {"min": 2, "max": 3}, "resources": {"custom": {"TPU": 1, "NPU": 2}}},
            "gang": {"strategy": "strict-pack", "topology": "rack", "labels": {"zone": "b", "accelerator": "A|B"}},
        }
    )
    assert isinstance(spec, TrainFunction)
    job = asked(spec)
    assert (job.tenant, job.priority, job.after, job.estimate_s, job.preemptible) == (
        "vision",
        3,
        ("a-1",),
        60.0,
        False,
    )
    one = Resources(1.0, custom=(("NPU", 2.0), ("TPU", 1.0)))
    labels = (("accelerator", "A|B"), ("zone", "b"))
    assert job.gang == Gang((one, one), 1, Strategy.STRICT_PACK, "rack", labels)
    assert [len(gang.bundles) for gang in job.larger] == [3]


def test_a_tenants_limits() -> None:
    spec = parse(
        {
            **{
                "kind": "Tenant",
                "name": "vision",
                "parent": "research",
                "share": 2.0,
                "borrow_limit": 0.5,
                "budget": 2.0,
            },
            "quota": {"gpus": 8, "custom": {"TPU": 4}},
        }
    )
    assert isinstance(spec, TenantSpec)
    quota = Resources(gpus=8.0, custom=(("TPU", 4.0),))
    assert tenant(spec, Resources(1.0), 5.0) == Tenant(
        "vision", "research", 2.0, 0.5, quota, 7200.0, Resources(1.0), 5.0
    )
