"""What a service wants of the cluster."""

from __future__ import annotations

from llmos.control.translate import replica_gang
from llmos.core.types import Gang, Resources
from llmos.spec import Mesh, Service
from llmos.spec import Resources as ResourcesSpec


def test_a_replica_holds_what_its_ranks_do_on_one_node() -> None:
    each = ResourcesSpec(cpus=2, gpus=1, memory=2**30)
    service = Service(name="s", model="m", mesh=Mesh(tp=2, pp=3), resources=each)
    assert replica_gang(service) == Gang((Resources(12, 6, 6 * 2**30),))
    assert replica_gang(Service(name="s", model="m")) == Gang((Resources(1.0),))
