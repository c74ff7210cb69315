"""`llmos tenants`, and what other commands have to do with tenants."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import JOB_YAML, Run
from tests.unit.cli.test_jobs import table
from tests.unit.fake_api import FakeApi


def test_tenants_are_created_listed_and_changed(llmos: Run, api: FakeApi) -> None:
    options = ("--share", "2", "--borrow-limit", "0.5", "--quota", "gpus=16,memory=1TiB", "--budget", "500")
    result = llmos("tenants", "create", "vision", "--parent", "default", *options)
    assert result.code == 0 and "llmos keys create NAME --tenant vision" in result.err
    assert api.tenants["vision"]["spec"] == {
        **{"kind": "Tenant", "name": "vision", "parent": "default", "share": 2.0, "borrow_limit": 0.5},
        **{"quota": {"gpus": 16.0, "memory": 2**40}, "budget": 500.0},
    }
    for command in (["tenants"], ["tenants", "list"]):
        default, vision = table(llmos(*command).out)
        assert (default["NAME"], default["QUOTA"], default["GPU-HOURS"]) == ("default", "-", "12.5")
        assert vision == {
            **{
                "NAME": "vision",
                "PARENT": "default",
                "SHARE": "2",
                "BORROWS": "0.5",
                "QUOTA": "gpus=16,memory=1024GiB",
            },
            **{"GPUS": "4", "RUNNING": "1", "WAITING": "2", "GPU-HOURS": "12.5 of 500"},
        }
    assert json.loads(llmos("tenants", "-o", "json").out)[1]["name"] == "vision"
    (row,) = table(llmos("tenants", "set", "vision", "--budget", "none", "--quota", "gpus=8", "--share", "3").out)
    assert (row["QUOTA"], row["GPU-HOURS"], row["SHARE"], row["BORROWS"]) == ("gpus=8", "12.5", "3", "0.5")
    assert json.loads(llmos("tenants", "set", "vision", "--parent", "none", "-o", "json").out)["parent"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["create", "default"], 1, "tenant `default` exists already"),
        (["set", "ghost", "--share", "2"], 1, "no tenant `ghost`"),
        (["set", "default"], 2, "nothing to change: expected at least one option"),
        (["create", "Vision!"], 2, "'Vision!' is not a name"),
        (
            ["create", "a", "--quota", "16"],
            2,
            "expected some of cpus=AMOUNT, gpus=AMOUNT, memory=AMOUNT, custom.NAME=AMOUNT",
        ),
        (["create", "a", "--quota", "gpus=many"], 2, "`--quota many`: expected a number"),
        (["create", "a", "--budget", "much"], 2, "`--budget much`: expected a number, or `none`"),
        (["create", "a", "--quota", "memory=1T"], 2, "not a size"),
    ],
)
def test_what_is_wrong_is_said(llmos: Run, api: FakeApi, arguments: list[str], code: int, message: str) -> None:
    result = llmos("tenants", *arguments)
    assert result.code == code and message in result.err and list(api.tenants) == ["default"]


def test_tenants_are_removed_and_one_in_use_is_refused(llmos: Run, api: FakeApi) -> None:
    for name in ("vision", "audio"):
        llmos("tenants", "create", name)
    llmos("keys", "create", "ci", "--tenant", "audio")
    result = llmos("tenants", "remove", "vision", "audio")
    assert result.code == 1 and result.err.startswith("tenant vision is removed\nerror: tenant `audio` is still in use")
    assert list(api.tenants) == ["default", "audio"]


def test_a_key_is_made_for_a_tenant(llmos: Run, api: FakeApi) -> None:
    llmos("keys", "create", "ci", "--scope", "submit", "--tenant", "vision")
    assert api.keys[0]["tenant"] == "vision" and table(llmos("keys").out)[0]["TENANT"] == "vision"
    llmos("keys", "create", "other")
    assert api.keys[1]["tenant"] == "default"


def test_a_file_may_hold_tenants_and_their_jobs(llmos: Run, api: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(f"kind: Tenant\nname: vision\n---\n{JOB_YAML}tenant: vision\npriority: 3\n")
    rows = table(llmos("submit", "all.yaml").out)
    assert [(row["KIND"], row["ID"]) for row in rows] == [("Tenant", "vision"), ("TrainJob", "coder-1")]
    assert "vision" in api.tenants and api.jobs[0]["spec"]["priority"] == 3
    llmos("submit", "all.yaml", "--tenant", "audio")
    assert api.jobs[1]["spec"]["tenant"] == "audio" and "audio" not in api.tenants


@pytest.mark.parametrize("command", ["submit", "train"])
def test_what_could_never_start_may_be_let_wait(llmos: Run, api: FakeApi, job_file: Path, command: str) -> None:
    llmos(command, str(job_file))
    llmos(command, str(job_file), "--allow-pending")
    sent = [json.loads(request.content) for request in api.requests if request.url.path == "/api/v1/jobs"]
    assert [body["allow_pending"] for body in sent] == [False, True]


def test_train_takes_a_job_and_no_tenant(llmos: Run, tmp_path: Path) -> None:
    (tmp_path / "tenant.yaml").write_text("kind: Tenant\nname: vision\n")
    result = llmos("train", "tenant.yaml")
    assert result.code == 2 and "holds Tenant: expected one job" in result.err


def test_keys_and_tenants_have_limits(llmos: Run, api: FakeApi) -> None:
    llmos("keys", "create", "app", "--requests-per-minute", "60", "--concurrency", "4")
    assert api.keys[0]["limits"] == {"requests_per_min": 60, "concurrency": 4}
    assert table(llmos("keys").out)[0]["LIMITS"] == "60/min 4 at once"
    result = llmos("keys", "set", "app", "--requests-per-minute", "none", "--tokens-per-minute", "20000")
    assert result.err == "key k0 (app): 4 at once 20000 tok/min\n"
    assert api.keys[0]["limits"] == {"concurrency": 4, "tokens_per_min": 20000}
    llmos("tenants", "create", "vision", "--tokens-per-minute", "500", "--concurrency", "9")
    llmos("tenants", "set", "vision", "--concurrency", "none", "--share", "2")
    assert api.tenants["vision"]["spec"] == {
        **{"kind": "Tenant", "name": "vision", "share": 2.0, "limits": {"tokens_per_min": 500}}
    }
    for wrong in ("0", "-1", "many", "1.5"):
        result = llmos("keys", "set", "app", f"--concurrency={wrong}")
        assert result.code == 2 and f"`--concurrency {wrong}`: expected a whole number from 1, or `none`" in result.err
    assert "nothing to change" in llmos("keys", "set", "app").err
    assert "no key `ghost`" in llmos("keys", "set", "ghost", "--concurrency", "1").err


def test_usage_is_a_table(llmos: Run, api: FakeApi) -> None:
    assert llmos("usage").err == "nothing was asked since 30d\n"
    llmos("keys", "create", "app")
    first, total = table(llmos("usage", "--by", "key,service").out)
    assert (first["KEY"], first["SERVICE"], first["REQUESTS"], first["PROMPT"]) == (
        "k0 (app)",
        "chat",
        "1,200",
        "34,567",
    )
    assert (total["KEY"], total["COMPLETION"]) == ("total", "8,900")
    llmos("usage", "--tenant", "t", "--key", "app", "--service", "s", "--since", "7d")
    asked = api.requests[-1].url.params
    assert asked.get_list("by") == ["tenant", "key", "service"]
    assert [asked[name] for name in ("tenant", "key", "service", "since")] == ["t", "app", "s", "7d"]
    found = json.loads(llmos("usage", "--json", "--by", "day").out)
    assert found == json.loads(llmos("usage", "-o", "json", "--by", "day").out)
    assert found["rows"][0]["day"] == "2026-01-31" and "expected some of day" in llmos("usage", "--by", ",").err
