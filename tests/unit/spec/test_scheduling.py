"""What specs say to the scheduler: tenants, priorities, dependencies, gangs."""

from __future__ import annotations

from typing import Any

import pytest

from llmos.errors import SpecError
from llmos.spec import Quota, Tenant, TrainFunction, load, parse, to_dict, to_yaml

FIELDS: dict[str, Any] = {
    "tenant": "research",
    "priority": 5,
    "after": ["prepare-3", "tokens"],
    "expected_runtime": "2h",
    "preemptible": False,
    "gang": {"strategy": "spread", "topology": "rack", "labels": {"ray.io/accelerator-type": "A100|H100"}},
}
JOB = {"kind": "TrainFunction", "name": "mine", "function": {"call": "loop:main"}, "steps": 10}


def job(**fields: Any) -> TrainFunction:
    spec = parse({**JOB, **fields})
    assert isinstance(spec, TrainFunction)
    return spec


def test_a_job_says_whose_it_is_how_urgent_and_where_it_may_lie() -> None:
    spec = job(**FIELDS)
    assert (spec.tenant, spec.priority, spec.after, spec.expected_runtime) == (
        "research", 5, ("prepare-3", "tokens"), 7200.0,
    )  # fmt: skip
    assert (spec.gang.strategy, spec.gang.topology) == ("spread", "rack")
    assert parse(to_dict(spec)) == spec and load(to_yaml(spec)) == [spec]
    assert job(after="prepare").after == ("prepare",)
    assert (job().tenant, job().priority, job().after, job().preemptible) == (None, 0, (), True)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"priority": 101}, "`priority`: expected at most 100, found `101`"),
        ({"priority": -101}, "`priority`: expected at least -100"),
        ({"priority": 1.5}, "`priority`: expected a whole number"),
        ({"tenant": "Research!"}, "'Research!' is not a name"),
        ({"after": ["Two Jobs"]}, "'Two Jobs' is not a job: expected an id"),
        ({"after": ["a"] * 257}, "`after`: expected at most 256 of them, found 257"),
        ({"expected_runtime": "soon"}, "`expected_runtime`: not a duration"),
        ({"gang": {"strategy": "tight"}}, "'pack', 'spread' or 'strict-pack'"),
        ({"gang": {"topology": "a rack"}}, "'a rack' is not the name of a node label"),
        ({"gang": {"labels": {"accelerator": "H100|"}}}, "'H100|' is not a value of a node label"),
        ({"gang": {"label": {}}}, "did you mean `labels`?"),
    ],
)
def test_what_a_job_may_not_say(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        job(**fields)
    assert said in str(caught.value)


def test_a_tenant_has_a_share_and_limits() -> None:
    (spec,) = load(
        "kind: Tenant\nname: vision\nparent: research\nshare: 2\nborrow_limit: 0.5\n"
        "quota: {gpus: 16, memory: 1TiB}\nbudget: 500\n"
    )
    assert spec == Tenant(
        name="vision", parent="research", share=2.0, borrow_limit=0.5, budget=500.0,
        quota=Quota(gpus=16.0, memory=2**40),
    )  # fmt: skip
    assert parse(to_dict(spec)) == spec
    assert to_dict(Tenant(name="a")) == {"kind": "Tenant", "name": "a", "share": 1.0}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"parent": "a"}, "`parent: a` is the tenant itself"),
        ({"share": 0}, "`share`: expected more than 0"),
        ({"borrow_limit": -1}, "`borrow_limit`: expected at least 0"),
        ({"quota": {"gpus": 0}}, "`quota.gpus`: expected more than 0"),
        ({"quota": {"gpu": 1}}, "did you mean `gpus`?"),
        ({"budget": -1}, "`budget`: expected at least 0"),
    ],
)
def test_what_a_tenant_may_not_say(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse({"kind": "Tenant", "name": "a", **fields})
    assert said in str(caught.value)


def test_resources_of_other_kinds_have_names() -> None:
    custom = job(resources={"cpus": 0, "custom": {"TPU": 4}})
    assert custom.resources.custom == {"TPU": 4.0} and parse(to_dict(custom)) == custom
    assert "custom" not in to_dict(job())["resources"]
    for wrong, said in (
        ({"GPU": 1}, "'GPU' is no custom resource: expected the field `gpus`"),
        ({"a b": 1}, "'a b' is not the name of a resource"),
        ({"TPU": 0}, "expected more than 0.0, found `0`"),
    ):
        with pytest.raises(SpecError, match=said):
            job(resources={"custom": wrong})
