"""Models, services, keys, login, and the commands that start and stop a cluster."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llmos import ClusterError, control
from tests.unit.cli.conftest import URL, Run
from tests.unit.cli.test_jobs import table
from tests.unit.fake_api import KEY, STATUS, FakeApi


def test_models_are_listed_described_exported_and_removed(llmos: Run, api: FakeApi) -> None:
    assert llmos("models").err.startswith("no models yet: train one with `llmos train FILE`")
    api.add_model()
    for command in (["models"], ["models", "list"]):
        (row,) = table(llmos(*command).out)
        assert row == {
            "MODEL": "coder@1",
            "ALIASES": "prod",
            "PARAMETERS": "2.3M",
            "SIZE": "9.2 MB",
            "AGE": "1h 0m",
            "DIGEST": "0123456789ab",
        }
        assert json.loads(llmos(*command, "-o", "json").out)[0]["ref"] == "coder@1"
    assert "bits_per_byte: 1.5" in llmos("models", "describe", "coder").out
    assert json.loads(llmos("models", "describe", "coder", "-o", "json").out)["lineage"]["job"] == "coder-1"
    assert llmos("models", "export", "coder@1", "out").out == "out\n"
    assert llmos("models", "rm", "coder@1").err == "model coder@1 is removed\n"
    assert api.models == []


def test_an_imported_model_is_named_after_its_directory(llmos: Run, api: FakeApi, tmp_path: Path) -> None:
    assert llmos("models", "import", "./weights").out == "weights@1\n"
    result = llmos("models", "import", "weights", "--name", "coder", "-o", "json")
    assert json.loads(result.out)["path"] == str(tmp_path / "weights")


def test_a_model_in_use_stays(llmos: Run, api: FakeApi) -> None:
    api.add_model()
    llmos("serve", "coder@1")
    result = llmos("models", "rm", "coder@1")
    assert (result.code, result.err) == (
        1,
        "error: model `coder@1` is in use by a service\n  remove the service first\n",
    )


def test_serve_waits_until_ready_and_prints_the_base_url(llmos: Run, api: FakeApi) -> None:
    result = llmos("serve", "coder@1", "--replicas", "2")
    assert (result.code, result.out) == (0, f"{URL}/v1\n")
    assert result.err.startswith("service coder: coder@1, starting 2 replicas\nservice coder is ready; try\n  curl ")
    assert KEY not in result.err
    (row,) = table(llmos("services").out)
    assert (row["NAME"], row["MODEL"], row["PHASE"], row["READY"]) == ("coder", "coder@1", "ready", "2/2")
    assert json.loads(llmos("serve", "coder", "-n", "mine", "-o", "json").out)["name"] == "mine"
    assert api.services["mine"]["spec"]["model"] == "coder"


def test_serve_that_does_not_get_ready_fails(llmos: Run, api: FakeApi) -> None:
    result = llmos("serve", "coder@1", "--timeout", "0")
    assert result.code == 1 and result.out == ""
    assert "error: gave up waiting: service coder is not ready: loading weights" in result.err


def test_services_are_listed_described_and_removed(llmos: Run, api: FakeApi) -> None:
    assert llmos("services").err == "no services yet: serve a model with `llmos serve MODEL`\n"
    llmos("serve", "coder@1")
    shown = " ".join(llmos("services", "describe", "coder").out.split())
    assert "service coder phase ready model coder@1 ready 1 of 1" in shown and "kind: Service" in shown
    assert json.loads(llmos("services", "list", "-o", "json").out)[0]["name"] == "coder"
    assert json.loads(llmos("services", "describe", "coder", "-o", "json").out)["ready"] == 1
    assert llmos("services", "rm", "coder").err == "service coder is removed\n"
    assert llmos("services", "describe", "coder").code == 1


def test_a_new_keys_secret_is_all_there_is_on_stdout(llmos: Run, api: FakeApi) -> None:
    result = llmos("keys", "create", "laptop", "--scope", "infer", "--scope", "submit")
    assert (result.code, result.out) == (0, "llmos_k0_hush\n")
    assert "laptop: infer, submit" in result.err and "not shown again" in result.err
    (row,) = table(llmos("keys").out)
    assert (row["NAME"], row["SCOPES"], row["STATE"]) == ("laptop", "infer,submit", "valid")
    assert llmos("keys", "revoke", "k0").err == "key k0 is revoked\n"
    assert table(llmos("keys", "list").out)[0]["STATE"] == "revoked"
    assert json.loads(llmos("keys", "create", "x", "-o", "json").out)["scopes"] == ["infer"]
    assert "hush" not in llmos("keys", "-o", "json").out


def test_login_checks_the_key_and_remembers_it_privately(
    llmos: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = llmos("login", f"{URL}/", "--key-stdin", stdin=f"{KEY}\n")
    path = tmp_path / ".llmos" / "client.json"
    assert (result.code, result.out) == (0, "")
    assert result.err == f"logged in to {URL}; remembered in {path}\n"
    assert json.loads(path.read_text()) == {"url": URL, "key": KEY}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.delenv("LLMOS_URL")
    monkeypatch.delenv("LLMOS_API_KEY")
    assert llmos("jobs").code == 0


@pytest.mark.parametrize(
    ("url", "key", "code", "message"),
    [
        (URL, "wrong", 1, "error: the API key is not valid"),
        (URL, "", 2, "error: no API key was given"),
        (
            "127.0.0.1:8000",
            KEY,
            2,
            "error: `127.0.0.1:8000` is not the address of a cluster: expected http://HOST:PORT",
        ),
    ],
)
def test_a_login_that_fails_remembers_nothing(
    llmos: Run, tmp_path: Path, url: str, key: str, code: int, message: str
) -> None:
    result = llmos("login", url, "--key-stdin", stdin=key)
    assert result.code == code and result.err.startswith(message)
    assert not (tmp_path / ".llmos").exists()


def test_login_over_an_open_network_is_warned_about(llmos: Run) -> None:
    assert "http://far:1 is not encrypted" in llmos("login", "http://far:1", "--key-stdin", stdin=KEY).err


def test_status_as_json(llmos: Run) -> None:
    assert json.loads(llmos("status", "-o", "json").out)["control"]["pid"] == 42


def test_status_for_people(llmos: Run) -> None:
    assert (
        llmos("status").out
        == """\
control  pid 42, up 1m 15s, llmos 0.1.0
jobs     1 queued, 2 running
GPUs     1: 1 used, 0 free
CPUs     8: 2.5 used, 1 foreign, 4.5 free

NODE          CPUS               GPUS  MEMORY      STATE
0123456789ab  3.5/8 (1 foreign)  1/1   0 B/2.0 GB  alive

TENANT   RUNNING  WAITING  CPUS  GPUS  HOLDS  SHARE
default  2        1        2.5   1     100%   100%

SERVICE  MODEL    PHASE  READY
coder    coder@1  ready  1/1

WAITING  WHY
coder-3  needs 1 bundle of 1 GPU
"""
    )


class Head:
    """Stands for ``llmos.control.ray.head``, whose real self starts Ray."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        module = ModuleType("llmos.control.ray.head")
        module.up, module.down = self.up, self.down  # type: ignore[attr-defined]
        package = ModuleType("llmos.control.ray")
        package.head = module  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "llmos.control.ray", package)
        monkeypatch.setitem(sys.modules, "llmos.control.ray.head", module)
        monkeypatch.setattr(control, "ray", package, raising=False)

    def up(
        self,
        state_dir: Path,
        address: str | None,
        port: int,
        report: Any,
        nodes: int | None,
        config: Path | None,
        order: str | None,
        standbys: int | None,
    ) -> dict[str, Any]:
        autoscaling = [nodes, config] if nodes or config else []
        how = [choice for choice in (order, standbys) if choice is not None]
        self.calls.append(("up", state_dir, address, port, *autoscaling, *how))
        if port == 1:
            raise ClusterError("port 1 on 127.0.0.1 is taken", hint="choose another with --port")
        report("Ray is up")
        return {"url": f"http://127.0.0.1:{port}", "address": "127.0.0.1:6379", "control_pid": 7}

    def down(self, state_dir: Path, report: Any) -> None:
        self.calls.append(("down", state_dir))


def test_up_and_down(llmos: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head(monkeypatch)
    result = llmos("up", "--address", "auto", "--port", "8123", "--state-dir", "state")
    assert result.code == 0 and "http://127.0.0.1:8123" in result.out and "Ray is up" in result.err
    assert json.loads(llmos("up", "-o", "json").out)["control_pid"] == 7
    assert llmos("down", "--state-dir", "state").code == 0
    here = tmp_path / "state"
    assert head.calls == [("up", here, "auto", 8123), ("up", tmp_path / ".llmos", None, None), ("down", here)]
    assert llmos("up", "--order", "shortest").code == 0 and head.calls[-1][-1] == "shortest"
    assert llmos("up", "--order", "longest").code == 2
    assert llmos("up", "--standbys", "0").code == 0 and head.calls[-1][-1] == 0
    assert llmos("up", "--standbys", "-1").code == 2


def test_a_cluster_that_does_not_start_says_why(llmos: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Head(monkeypatch)
    result = llmos("up", "--port", "1")
    assert (result.code, result.out) == (1, "")
    assert result.err == "error: port 1 on 127.0.0.1 is taken\n  choose another with --port\n"


def test_up_block_stays_until_it_is_told_to_end(llmos: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head(monkeypatch)

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("signal.pause", interrupt)
    monkeypatch.setattr("signal.signal", lambda *args: None)
    assert llmos("up", "--block").code == 0
    assert [call[0] for call in head.calls] == ["up", "down"]


def test_up_with_nodes_that_come_and_go(llmos: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    head, config = Head(monkeypatch), tmp_path / "cluster.yaml"
    config.touch()
    assert llmos("up", "--autoscale-local", "4").code == 0
    assert llmos("up", "--address", "auto", "--autoscaling-config", str(config)).code == 0
    assert [call[-2:] for call in head.calls] == [(4, None), (None, config)]
    refused = llmos("up", "--autoscale-local", "4", "--address", "auto")
    assert refused.code == 2 and "starts a cluster, `--address auto` joins one" in refused.err
    refused = llmos("up", "--autoscaling-config", str(config))
    assert refused.code == 2 and "expected `--address`, too" in refused.err
    for wrong in (("--autoscale-local", "1"), ("--autoscaling-config", str(tmp_path / "missing.yaml"))):
        assert llmos("up", *wrong).code == 2
    assert len(head.calls) == 2


def test_status_tells_why_no_node_comes(llmos: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [
        {"name": "gpu", "there": 1, "wanted": 3, "fewest": 0, "most": 8, "trouble": "no room in eu-1", "retry_s": 75.0},
        {"name": "cpu", "there": 0, "wanted": 0, "fewest": 0, "most": 2, "trouble": "", "retry_s": 0.0},
    ]
    monkeypatch.setitem(STATUS, "kinds", kinds)
    shown = llmos("status").out
    assert "KIND  NODES  WANTED  MOST  TROUBLE\n" in shown
    assert (
        "gpu   1      3       8     no room in eu-1; next try in 1m 15s\n" in shown
        and "\ncpu   0      0       2" in shown
    )


def test_aliases_are_set_promoted_rolled_back_and_removed(llmos: Run, api: FakeApi) -> None:
    api.add_model()
    assert llmos("models", "alias", "coder@prod", "3").err == "coder@prod means coder@3\n"
    assert llmos("models", "promote", "coder@2").err == "coder@prod means coder@coder@2\n"
    assert api.requests[-1].url.path == "/api/v1/models/coder/aliases/prod"
    llmos("models", "promote", "coder@2", "--to", "next")
    assert api.requests[-1].url.path == "/api/v1/models/coder/aliases/next"
    assert llmos("models", "rollback", "coder@prod").err == "coder@prod means coder@1 again\n"
    first, second = table(llmos("models", "alias", "coder@prod").out)
    assert (first["VERSION"], second["VERSION"]) == ("coder@1", "coder@2")
    assert llmos("models", "alias", "coder@prod", "--rm").err == "alias coder@prod is removed\n"
    assert "is not an alias" in llmos("models", "rollback", "coder").err


def test_a_canary_is_weighed_and_a_service_rolled_back(llmos: Run, api: FakeApi) -> None:
    llmos("serve", "coder@1")
    api.services["coder"]["spec"]["canary"] = {"model": "coder@2", "weight": 0.1}
    assert llmos("services", "set-weight", "coder", "0.3").err == (
        "service coder: coder@1, coder@2 gets 30% of the requests\n"
    )
    assert llmos("services", "set-weight", "coder", "0").err == "service coder: coder@1, no canary\n"
    assert llmos("services", "set-weight", "coder", "2").code == 2
    assert llmos("services", "rollback", "coder").err == "service coder goes back to revision 1: coder@1\n"
    api.services["coder"] |= {
        **{"revision": 2, "previous": 1, "wake_s": 4.25, "follows": "coder@prod"},
        "revisions": [
            {"revision": 1, "model": "coder@1", "weight": 0.0, "ready": 1, "replicas": 1},
            {"revision": 2, "model": "coder@2", "weight": 1.0, "ready": 2, "replicas": 2},
        ],
    }
    shown = llmos("services", "describe", "coder").out
    assert "followed from coder@prod" in shown and "4.2s" in shown
    assert "100%" in shown and "a rollback goes here" in shown
    assert llmos("services", "events", "coder").code == 0
