"""What a service wants of the cluster."""

from __future__ import annotations

from llmos.control.translate import replica_gang, replica_groups
from llmos.core.types import Gang, Resources
from llmos.spec import Mesh, Service
from llmos.spec import Resources as ResourcesSpec


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
