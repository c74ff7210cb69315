"""Tenants that nothing names can be removed; the others not, and what names them is told."""

from __future__ import annotations

import pytest

from llmos.errors import ConflictError, NotFoundError
from tests.unit.control.test_tenants import gpu_job, make, on_gpus
from tests.unit.control.world import World


def test_a_tenant_that_nothing_names_can_be_removed(world: World) -> None:
    on_gpus(world)
    make(world, "a")
    make(world, "b", parent="a")
    key = world.control.create_key("k", ["submit"], "a")
    world.control.call("submit_job", f"Bearer {key['secret']}", spec=gpu_job(world))
    named = rf"`a` is still in use, by 1 key \({key['id']}\) and 1 unfinished job \(coder-1\) and 1 tenant \(b\):"
    with pytest.raises(ConflictError, match=named):
        world.control.remove_tenant("a")
    world.control.remove_tenant("b")
    world.control.revoke_key(key["id"])
    with pytest.raises(ConflictError, match=r"in use, by 1 unfinished job \(coder-1\): expected"):
        world.control.remove_tenant("a")
    world.run(20)
    assert world.control.get_tenant("a")["used_gpu_hours"] > 0
    world.control.remove_tenant("a")
    assert [view["name"] for view in world.control.list_tenants()] == ["default"]
    assert [event["what"] for event in world.store.events.of("tenant", "a")] == ["created", "removed"]
    assert world.control.get_job("coder-1")["tenant"] == "a"  # what has been stays
    world.run(2)
    assert [tenant.id for tenant in world.loop.sight.desired.tenants] == ["default"]
    assert make(world, "a")["used_gpu_hours"] == 0.0
    world.run(100)  # so usage is written down
    world.open()
    assert world.control.get_tenant("a")["used_gpu_hours"] == 0.0


def test_many_that_name_a_tenant_are_counted_and_the_default_one_stays(world: World) -> None:
    make(world, "a")
    for i in range(7):
        world.control.submit_job(world.spec(f"j{i}", tenant="a"))
    with pytest.raises(ConflictError, match=r"by 7 unfinished jobs \(j0-1, j1-1, j2-1, j3-1, j4-1, …\): expected"):
        world.control.remove_tenant("a")
    with pytest.raises(ConflictError, match="tenant `default` stays"):
        world.control.remove_tenant("default")
    with pytest.raises(NotFoundError, match="no tenant `ghost`"):
        world.control.remove_tenant("ghost")
