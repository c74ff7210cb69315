"""What a key sees: the jobs of its own tenant and of those below it, and of the others not even that they exist."""

from __future__ import annotations

from typing import Any

import pytest

from llmos.control.access import LISTING
from llmos.control.control import SCOPE_OF
from llmos.core.types import Node, Resources
from llmos.errors import ForbiddenError, NotFoundError
from tests.unit.control.test_tenants import header, make
from tests.unit.control.world import World

ABOUT_ONE_JOB = (
    ("get_job", "describe_job", "explain_job", "cancel_job"),
    ("job_events", "job_logs", "job_metrics"),
)


@pytest.fixture
def teams(world: World) -> dict[str, str]:
    """Headers by tenant: lab, vision below it, and shop beside it; each has a job called coder, in this order."""
    for name, fields in (("lab", {}), ("vision", {"parent": "lab"}), ("shop", {})):
        make(world, name, **fields)
    found = {name: header(world, tenant=name) for name in ("lab", "vision", "shop")}
    for key in found.values():
        world.control.call("submit_job", key, spec=world.spec())
    return found | {"admin": header(world, "admin")}


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(row["id"] for row in rows)


SEEN = {
    "lab": ["coder-1", "coder-2"],
    "vision": ["coder-2"],
    "shop": ["coder-3"],
    "admin": ["coder-1", "coder-2", "coder-3"],
}


@pytest.mark.parametrize(("who", "jobs"), SEEN.items())
def test_lists_have_what_the_key_may_see(world: World, teams: dict[str, str], who: str, jobs: list[str]) -> None:
    world.cluster.nodes = {"none": Node("none", Resources())}  # so all wait
    world.run(2)
    call = world.control.call
    assert ids(call("list_jobs", teams[who], tenant=None, state=None)) == jobs
    queue = call("list_queue", teams[who], tenant=None, limit=10)
    assert ids(queue["jobs"]) == jobs and queue["total"] == len(jobs)
    assert sorted(call("status", teams[who])["waiting"]) == jobs


def test_one_tenant_may_be_asked_for_if_it_may_be_seen(world: World, teams: dict[str, str]) -> None:
    world.run(1)
    assert ids(world.control.call("list_jobs", teams["lab"], tenant="vision")) == ["coder-2"]
    for verb in ("list_jobs", "list_queue"):
        for tenant in ("lab", "shop", "ghost"):  # whether there is one is not told
            with pytest.raises(ForbiddenError, match=f"belongs to tenant `vision`: .* of tenant `{tenant}`"):
                world.control.call(verb, teams["vision"], tenant=tenant)


@pytest.mark.parametrize("verb", sum(ABOUT_ONE_JOB, ()))
def test_a_job_of_others_is_one_that_does_not_exist(world: World, teams: dict[str, str], verb: str) -> None:
    for who, jobs in SEEN.items():
        for id in SEEN["admin"]:
            if id in jobs:
                world.control.call(verb, teams[who], job=id)
                continue
            with pytest.raises(NotFoundError) as hidden:
                world.control.call(verb, teams[who], job=id)
            with pytest.raises(NotFoundError) as missing:
                world.control.call(verb, teams[who], job="coder-9")
            assert str(hidden.value) == str(missing.value).replace("coder-9", id)


def test_nobody_cancels_jobs_of_others(world: World, teams: dict[str, str]) -> None:
    with pytest.raises(NotFoundError):
        world.control.call("cancel_job", teams["shop"], job="coder-1")
    world.control.call("cancel_job", teams["lab"], job="coder-2")
    world.run(2)
    phases = {id: world.control.get_job(id)["phase"] for id in SEEN["admin"]}
    assert phases["coder-2"] == "cancelled" and "cancelled" not in (phases["coder-1"], phases["coder-3"])


def test_a_name_means_the_newest_job_that_the_key_may_see(world: World, teams: dict[str, str]) -> None:
    newest = {who: world.control.call("get_job", key, job="coder")["id"] for who, key in teams.items()}
    assert newest == {"lab": "coder-2", "vision": "coder-2", "shop": "coder-3", "admin": "coder-3"}


def test_a_job_comes_after_jobs_that_its_key_may_see(world: World, teams: dict[str, str]) -> None:
    def after(who: str, ref: str) -> list[str]:
        job = world.control.call("submit_job", teams[who], spec=world.spec("next", after=[ref]))
        return list(job["spec"]["after"])

    assert after("lab", "coder") == ["coder-2"] and after("admin", "coder") == ["coder-3"]
    with pytest.raises(NotFoundError, match="no job `coder-1` to come after"):
        after("shop", "coder-1")


def test_every_verb_about_jobs_is_bounded() -> None:
    """A verb that is added is thought of here: it names a job, lists jobs, or has nothing to do with them."""
    about_jobs = {verb for verb in SCOPE_OF if "job" in verb or verb in ("list_queue", "status")}
    assert about_jobs == {*sum(ABOUT_ONE_JOB, ()), *LISTING, "submit_job"}
