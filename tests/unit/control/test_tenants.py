"""Tenants from the spec to the plan: whose a job is, what is refused, what is counted."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from llmos.control.store import Store
from llmos.control.store.migrations import MIGRATIONS
from llmos.core.types import Node, Resources
from llmos.errors import ConflictError, ForbiddenError, NotFoundError, SpecError, UsageError
from llmos.layout import Layout
from llmos.sim.cluster import Outcome
from tests.unit.control.world import World


def make(world: World, name: str, **fields: Any) -> dict[str, Any]:
    return world.control.put_tenant(name, {"kind": "Tenant", "name": name, **fields})


def on_gpus(world: World, nodes: int = 2) -> None:
    """Give the world ``nodes`` nodes of four GPUs and one core for each."""
    world.cluster.nodes = {f"gpu-{i}": Node(f"gpu-{i}", Resources(cpus=4, gpus=4)) for i in range(nodes)}


def gpu_job(world: World, name: str = "coder", gpus: int = 1, **fields: Any) -> dict[str, Any]:
    return world.spec(name, resources={"cpus": 1, "gpus": gpus}, **fields)


def header(world: World, *scopes: str, tenant: str = "default") -> str:
    return f"Bearer {world.control.create_key('k', scopes or ('submit',), tenant)['secret']}"


def test_there_is_always_a_default_tenant(world: World) -> None:
    (view,) = world.control.list_tenants()
    assert (view["name"], view["parent"], view["share"], view["quota"], view["budget"]) == (
        "default",
        None,
        1.0,
        None,
        None,
    )
    assert world.control.submit_job(world.spec())["spec"]["tenant"] == "default"
    assert world.store.jobs.find("coder")["tenant"] == "default"


def test_a_tenant_is_created_changed_and_looked_at(world: World) -> None:
    make(world, "research", share=3)
    view = make(world, "vision", parent="research", quota={"gpus": 8, "memory": "1GiB"}, budget=10)
    assert view["quota"] == {"gpus": 8.0, "memory": 2**30}
    assert make(world, "vision", parent="research", share=2)["quota"] is None
    assert [view["name"] for view in world.control.list_tenants()] == ["default", "research", "vision"]
    with pytest.raises(ConflictError, match="tenant `vision` exists already"):
        world.control.put_tenant("vision", {"kind": "Tenant", "name": "vision"}, new=True)
    with pytest.raises(NotFoundError, match="no tenant `audio`"):
        world.control.put_tenant("audio", {"kind": "Tenant", "name": "audio"}, new=False)
    assert [event["what"] for event in world.store.events.of("tenant", "vision")] == ["created", "changed"]


def test_tenants_that_cannot_be_are_refused_with_the_reason(world: World) -> None:
    make(world, "a")
    make(world, "b", parent="a")
    make(world, "c", parent="b")
    with pytest.raises(
        ConflictError, match="`a` cannot be a part of `c`, which is a part of `b`, which is a part of `a`"
    ):
        make(world, "a", parent="c")
    with pytest.raises(SpecError, match="the tenant itself"):
        make(world, "a", parent="a")
    with pytest.raises(NotFoundError, match="`d` cannot be a part of `ghost`: there is no such tenant"):
        make(world, "d", parent="ghost")
    with pytest.raises(UsageError, match="of tenant `a`, the address names `b`"):
        world.control.put_tenant("b", {"kind": "Tenant", "name": "a"})
    with pytest.raises(UsageError, match="expected a Tenant, found a TrainJob"):
        world.control.put_tenant("coder", world.spec())
    assert world.control.get_tenant("a")["parent"] is None
    with pytest.raises(NotFoundError, match="no tenant `d`"):
        world.control.get_tenant("d")


def test_a_job_belongs_to_the_tenant_of_its_key(world: World) -> None:
    make(world, "research")
    key = header(world, tenant="research")
    job = world.control.call("submit_job", key, spec=world.spec())
    assert job["spec"]["tenant"] == "research" and world.store.jobs.unfinished()[0].tenant == "research"
    world.control.call("submit_job", key, spec=world.spec(tenant="research"))
    with pytest.raises(
        ForbiddenError, match="belongs to tenant `research`: it may not submit jobs of tenant `default`"
    ):
        world.control.call("submit_job", key, spec=world.spec(tenant="default"))
    admin = header(world, "admin")
    assert world.control.call("submit_job", admin, spec=world.spec())["spec"]["tenant"] == "default"
    assert world.control.call("submit_job", admin, spec=world.spec(tenant="research"))["spec"]["tenant"] == "research"
    with pytest.raises(NotFoundError, match="no tenant `ghost`"):
        world.control.call("submit_job", admin, spec=world.spec(tenant="ghost"))
    with pytest.raises(NotFoundError, match="no tenant `ghost`"):
        world.control.create_key("k", ["submit"], "ghost")
    assert {key["tenant"] for key in world.control.list_keys()} == {"research", "default"}


def test_one_idempotency_key_of_two_tenants_is_two_jobs(world: World) -> None:
    make(world, "research")
    other = header(world, tenant="research")
    first = world.control.call("submit_job", header(world), spec=world.spec(), idempotency_key="k")
    second = world.control.call("submit_job", other, spec=world.spec(), idempotency_key="k")
    assert first["id"] != second["id"]
    assert world.control.call("submit_job", other, spec=world.spec(), idempotency_key="k")["id"] == second["id"]
    with pytest.raises(ConflictError, match=f"`research/k` stands for job {second['id']}"):
        world.control.call("submit_job", other, spec=world.spec(steps=7), idempotency_key="k")


def test_a_quota_holds_back_and_the_reason_is_told(world: World) -> None:
    on_gpus(world)
    make(world, "research", quota={"gpus": 2})
    make(world, "vision", parent="research")
    world.run(1)
    jobs = [world.control.submit_job(gpu_job(world, f"j{i}", tenant="vision"))["id"] for i in range(3)]
    world.run(3)
    assert [world.control.get_job(id)["phase"] for id in jobs] == ["running", "running", "queued"]
    assert "tenant research holds 2 GPUs of its quota of 2 GPUs" in world.control.get_job(jobs[2])["reason"]
    view = world.control.get_tenant("vision")
    assert (view["running"], view["waiting"], view["held"]["gpus"]) == (2, 1, 2.0)
    make(world, "research", quota={"gpus": 3})
    world.run(2)
    assert world.control.get_job(jobs[2])["phase"] in ("starting", "running")


def test_a_higher_priority_goes_first_and_ends_lower_ones(world: World) -> None:
    world.outcomes["low-1"] = [Outcome(1000.0)] * 3
    world.control.submit_job(world.spec("low", resources={"cpus": 4}))
    world.run(5)
    world.control.submit_job(world.spec("mid", priority=1, preemptible=True, resources={"cpus": 4}))
    world.control.submit_job(world.spec("high", priority=2, resources={"cpus": 4}))
    world.run(5)
    assert [world.control.get_job(name)["phase"] for name in ("low", "mid", "high")] == ["queued", "queued", "running"]
    low = next(job for job in world.store.jobs.unfinished() if job.id == "low-1")
    assert low.resumes and low.failures == 0
    world.run(40)
    assert [world.control.get_job(name)["phase"] for name in ("low", "mid", "high")] == [
        "running",
        "succeeded",
        "succeeded",
    ]
    assert world.control.get_job("low")["attempts"] == 2


def test_one_that_is_not_preemptible_stays(world: World) -> None:
    world.outcomes["low-1"] = [Outcome(1000.0)]
    world.control.submit_job(world.spec("low", preemptible=False, resources={"cpus": 4}))
    world.run(5)
    world.control.submit_job(world.spec("high", priority=2, resources={"cpus": 4}))
    world.run(5)
    assert [world.control.get_job(name)["phase"] for name in ("low", "high")] == ["running", "queued"]


def test_a_job_comes_after_others(world: World) -> None:
    first = world.control.submit_job(world.spec("first"))
    second = world.control.submit_job(world.spec("second", after=["first", first["id"]]))
    third = world.control.submit_job(world.spec("third", after="second"))
    assert second["spec"]["after"] == ["first-1"] and third["spec"]["after"] == ["second-1"]
    world.run(3)
    assert world.control.get_job("second")["reason"] == "comes after first-1, not finished yet"
    world.run(14)
    assert [world.control.get_job(name)["phase"] for name in ("first", "second", "third")] == [
        "succeeded", "running", "queued",
    ]  # fmt: skip
    world.open()
    world.run(30)
    assert world.control.get_job("third")["phase"] == "succeeded"
    late = world.control.submit_job(world.spec("late", after="first"))  # which has ended long ago
    world.run(2)
    assert world.control.get_job(late["id"])["phase"] in ("starting", "running")


def test_a_dependency_that_fails_fails_those_after_it(world: World) -> None:
    first = world.control.submit_job(world.spec("first"))["id"]
    world.control.submit_job(world.spec("second", after=first))
    world.control.submit_job(world.spec("third", after="second"))
    world.control.cancel_job(first)
    world.run(3)
    second, third = (world.control.get_job(name) for name in ("second", "third"))
    assert (second["phase"], second["reason"]) == ("failed", "first-1, which it comes after, was cancelled")
    assert (third["phase"], third["reason"]) == ("failed", "second-1, which it comes after, failed")
    world.control.submit_job(world.spec("later", after=first))
    world.run(2)
    assert world.control.get_job("later")["reason"] == "first-1, which it comes after, was cancelled"


def test_nothing_comes_after_a_job_that_there_is_not_also_not_after_itself(world: World) -> None:
    for after in ("ghost", "coder", "coder-1"):
        with pytest.raises(NotFoundError, match=f"no job `{after}` to come after"):
            world.control.submit_job(world.spec("coder", after=after))
    assert world.control.list_jobs() == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gpus": 5}, "needs 1 bundle of 1 CPU and 5 GPUs; cannot start on this cluster: its 2 nodes"),
        ({"workers": {"min": 9, "max": 9}}, "needs 9 bundles of 1 CPU and 1 GPU; cannot start on this cluster"),
        ({"workers": {"min": 5, "max": 5}, "gang": {"strategy": "strict-pack"}}, "on one node; cannot start"),
        ({"gang": {"labels": {"accelerator": "H100"}}}, r"\(accelerator=H100\); cannot start on this cluster"),
        ({"tenant": "small", "gpus": 3}, "tenant small holds 0 GPUs of its quota of 2 GPUs; this needs 3 GPUs"),
    ],
)
def test_what_could_never_start_is_refused_unless_it_may_wait(
    world: World, fields: dict[str, Any], message: str
) -> None:
    on_gpus(world)
    make(world, "small", quota={"gpus": 2})
    world.run(1)
    spec = gpu_job(world, batch_size=45, **fields)
    with pytest.raises(UsageError, match=f"the job could never start: .*{message}") as caught:
        world.control.submit_job(spec)
    assert "--allow-pending" in str(caught.value) and world.control.list_jobs() == []
    job = world.control.submit_job(spec, "key", allow_pending=True)
    assert world.control.submit_job(spec, "key")["id"] == job["id"]  # what was accepted stays so
    world.run(2)
    assert world.control.get_job(job["id"])["phase"] == "queued"


def test_what_fits_when_everything_is_free_is_no_impossible_request(world: World) -> None:
    on_gpus(world)
    wide = gpu_job(world, "wide", workers={"min": 8, "max": 8})
    assert world.control.submit_job(gpu_job(world, "unseen", gpus=64))["phase"] == "queued"  # nothing is known yet
    world.run(1)
    world.outcomes["wide-1"] = [Outcome(1000.0)]
    assert world.control.submit_job(wide)["phase"] == "queued"
    world.run(3)
    assert world.control.submit_job(wide)["phase"] == "queued"
    world.cluster.drain_node("gpu-0")  # for a while
    world.run(1)
    assert world.control.submit_job(wide)["phase"] == "queued"


def test_usage_is_counted_and_survives_a_restart(world: World) -> None:
    on_gpus(world)
    make(world, "research")
    world.outcomes["coder-1"] = [Outcome(1000.0)]
    world.control.submit_job(gpu_job(world, gpus=2, tenant="research"))
    world.run(100)
    used = world.control.get_tenant("research")["used_gpu_hours"] * 3600
    assert used == pytest.approx(2 * 100, abs=5)
    world.open()
    world.run(1)
    assert world.control.get_tenant("research")["used_gpu_hours"] * 3600 == pytest.approx(used + 2, abs=3)
    assert world.control.get_tenant("default")["used_gpu_hours"] == 0.0
    world.cluster.advance(world.cluster.now + 200)  # nobody looks, and the job runs on
    world.open()
    world.run(1)
    assert world.control.get_tenant("research")["used_gpu_hours"] * 3600 == pytest.approx(used + 404, abs=5)
    (tenant,) = [one for one in world.loop.sight.desired.tenants if one.id == "research"]
    assert 0 < tenant.used.gpus < 0.02


def test_a_budget_that_is_used_up_ends_what_runs(world: World) -> None:
    on_gpus(world)
    make(world, "research", budget=200 / 3600)
    world.outcomes["coder-1"] = [Outcome(1000.0)]
    world.control.submit_job(gpu_job(world, tenant="research", grace=60))
    world.run(250)
    job = world.control.get_job("coder")
    assert job["phase"] == "queued" and "GPU-hours of its budget of 0.05556 left" in job["reason"]
    assert world.control.get_tenant("research")["used_gpu_hours"] * 3600 <= 200
    make(world, "research", budget=2)
    world.run(3)
    assert world.control.get_job("coder")["phase"] == "running"


def test_a_quiet_cluster_writes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpus(world)
    make(world, "research")
    world.control.submit_job(gpu_job(world, tenant="research"))
    world.run(200)
    assert world.control.get_job("coder")["phase"] == "succeeded"
    for owner, name in ((world.store, "record"), (world.store.tenants, "save_usage"), (world.store.events, "add")):
        monkeypatch.setattr(owner, name, lambda *_args, **_keywords: pytest.fail("wrote something"))
    before = [one.used.gpus for one in world.loop.sight.desired.tenants if one.id == "research"]
    world.run(500, step_s=10.0)
    after = [one.used.gpus for one in world.loop.sight.desired.tenants if one.id == "research"]
    assert 0 < after[0] < before[0]  # old usage fades all the same


def test_a_database_of_an_earlier_llmos_is_brought_up(tmp_path: Path) -> None:
    old = tmp_path / "control.db"
    with sqlite3.connect(old) as connection:
        connection.executescript((Path(__file__).parent / "schema_1.sql").read_text())
    store = Store(Layout(tmp_path))
    row = store.jobs.find("coder-1")
    assert (row["tenant"], row["priority"], row["resumes"], row["measured"]) == ("default", 0, False, {})
    (job,) = store.jobs.unfinished()
    assert (job.id, job.tenant, job.priority, job.after, job.preemptible) == ("coder-1", "default", 0, (), True)
    assert [key["tenant"] for key in store.keys.all()] == ["default"]
    assert [tenant["name"] for tenant in store.tenants.all()] == ["default"]
    store.close()
    with sqlite3.connect(old) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert Store(Layout(tmp_path)).jobs.find("coder-1") == row  # and stays as it is


@pytest.mark.parametrize("schema", [4, 6])  # 6 has them too: services had no columns of revisions then
def test_a_service_from_before_revisions_has_its_first(tmp_path: Path, schema: int) -> None:
    with sqlite3.connect(tmp_path / "control.db") as connection:
        connection.executescript((Path(__file__).parent / "schema_4.sql").read_text())
        connection.execute(f"PRAGMA user_version = {schema}")
    store = Store(Layout(tmp_path))
    (served,) = store.services.served()
    assert served.row["current"] == 1 and list(served.revisions) == [1]
    assert store.services.spec("chat-1").model == "coder@1" and served.spec.replicas.max == 2
    more = served.spec.model_copy(update={"replicas": served.spec.replicas.model_copy(update={"max": 3})})
    assert store.services.put(more, 9.0)["current"] == 1, "nothing that replicas run has changed"
    assert store.services.put(more.model_copy(update={"max_batch": 7}), 9.0)["current"] == 2
    assert [(key["tenant"], key["limits"]) for key in store.keys.all()] == [("vision", {})]
    assert [tenant["name"] for tenant in store.tenants.all()] == ["default", "vision"]
    assert [(job.id, job.tenant, job.priority) for job in store.jobs.unfinished()] == [("coder-1", "vision", 3)]
    assert (tmp_path / "jobs/coder-1/spec.json").exists()
    store.close()


def test_a_tenant_turns_storage_of_chats_on_and_off(world: World) -> None:
    def ask(verb: str, tenant: str = "vision", **arguments: Any) -> Any:
        return world.control.completions(verb, tenant, arguments)

    make(world, "vision")
    assert not ask("keeps") and not ask("keeps", "nobody") and not ask("keeps", "default")
    make(world, "vision", stored_completions=2)
    assert ask("keeps") and not ask("keeps", "default")
    for number in range(3):
        ask("add", completion={"id": f"c{number}", "model": "m"}, messages=[])
    assert [chat["id"] for chat in ask("list")["data"]] == ["c1", "c2"] and not ask("list", "default")["data"]
    make(world, "vision")
    assert not ask("keeps") and len(ask("list")["data"]) == 2, "what was kept can still be read"
