from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from llmos.control.accounts import Accounts
from llmos.control.control import SCOPE_OF, Control
from llmos.control.serving_verbs import ServingVerbs
from llmos.errors import AuthError, ConflictError, LlmosError, ModelError, NotFoundError, SpecError, UsageError
from llmos.views import JobView, ModelView, ServiceView
from tests.unit.control.world import World


def test_verbs_are_what_the_table_says(world: World) -> None:
    methods = {name for part in (Control, Accounts, ServingVerbs) for name in vars(part) if not name.startswith("_")}
    inside = {"authorize", "training", "record_usage", "completions", "routes"}
    assert methods == {*SCOPE_OF, "call", *inside}
    for inner in inside:  # for the gateway itself, not for whoever asks it
        with pytest.raises(KeyError):
            world.control.call(inner, None)


def test_call_asks_for_the_key_first(world: World) -> None:
    with pytest.raises(AuthError):
        world.control.call("submit_job", None, spec="not even a mapping")
    secret = world.control.create_key("k", ["submit"])["secret"]
    assert world.control.call("list_jobs", f"Bearer {secret}") == []
    assert world.control.authorize(f"Bearer {secret}", "infer")["scopes"] == ["submit"]


def test_views_have_what_clients_rely_on(world: World) -> None:
    ref = world.trained()
    assert set(JobView.__annotations__) <= set(world.control.get_job("coder"))
    assert set(ModelView.__annotations__) <= set(world.control.get_model(ref))
    service = world.control.put_service("s", {"kind": "Service", "name": "s", "model": ref})
    assert set(ServiceView.__annotations__) <= set(service)
    for answer in (world.control.status(), world.control.list_jobs(), world.control.list_keys(), service):
        assert json.loads(json.dumps(answer)) == answer


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": {"path": "/no/such/text"}}, NotFoundError, "`data.path`: `/no/such/text` does not exist"),
        ({"data": {"path": "/no/such/*.txt"}}, NotFoundError, "`/no/such/\\*.txt` matches nothing"),
        ({"data": {"sources": [{"path": "/no/such"}]}}, NotFoundError, "`data.sources`: `/no/such` does not exist"),
        ({"data": {"path": ["s3://a/b", "/no/such"]}}, NotFoundError, "`data.path`: `/no/such` does not exist"),
        ({"data": {"path": "text.txt"}}, UsageError, "'text.txt' is not absolute"),
        ({"data": {"path": "/" + "x" * 5000}}, NotFoundError, "does not exist"),
        ({"model": {"config": "/no/such/model"}}, NotFoundError, "`model.config`: `/no/such/model` does not exist"),
        ({"model": {"config": "/"}}, ModelError, "there is no /config.json"),
        ({"model": {"ref": "nobody"}}, NotFoundError, "no model `nobody`"),
        ({"model": {"ref": "nobody@3"}}, NotFoundError, "no model `nobody@3`"),
        ({"steps": "many"}, SpecError, "steps"),
        ({"kind": "Service", "model": "m"}, SpecError, "Service|steps"),
    ],
)
def test_a_job_that_cannot_be_is_refused_and_leaves_nothing(
    world: World, changes: dict[str, Any], error: type[LlmosError], message: str
) -> None:
    with pytest.raises(error, match=message):
        world.control.submit_job(world.spec(**changes))
    assert world.control.list_jobs() == [] and not (world.layout.root / "jobs").exists()


def test_kinds_go_where_they_belong(world: World) -> None:
    with pytest.raises(UsageError, match="expected a job, found a Service"):
        world.control.submit_job({"kind": "Service", "name": "s", "model": "m"})
    with pytest.raises(UsageError, match="expected a Service, found a TrainJob"):
        world.control.put_service("coder", world.spec())


def test_a_service_is_served_as_pinned(world: World) -> None:
    ref = world.trained()
    world.control.put_service("s", {"kind": "Service", "name": "s", "model": "coder"})
    assert [view["name"] for view in world.control.list_services()] == ["s"]
    assert world.store.services.spec("s-1").model == ref
    for call in (world.control.get_service, world.control.delete_service):
        with pytest.raises(NotFoundError, match="no service `t`"):
            call("t")


def test_data_may_be_a_file_a_directory_or_a_glob(world: World) -> None:
    for path in (world.text, world.text.parent, world.text.parent / "**/*.txt"):
        assert world.control.submit_job(world.spec(data={"path": str(path)}))["phase"] == "queued"


def test_an_idempotency_key_is_one_job_even_when_the_newest_model_is_another(world: World) -> None:
    world.trained()
    spec = world.spec("tuned", model={"ref": "coder"})
    first = world.control.submit_job(spec, "key")
    world.trained()
    assert world.control.get_model("coder")["ref"] == "coder@2"
    again = world.control.submit_job(spec, "key")
    assert again["id"] == first["id"] and again["spec"]["model"]["ref"] == "coder@1"
    with pytest.raises(ConflictError, match="`default/key` stands for job tuned-1"):
        world.control.submit_job(spec | {"steps": 5}, "key")


def test_logs_and_metrics_of_a_job(world: World) -> None:
    world.control.submit_job(world.spec())
    assert world.control.job_logs("coder") == {"text": "", "offset": 1 << 40, "final": False}
    world.run(3)
    attempt = world.layout.job("coder-1").attempt(1)
    attempt.root.mkdir(parents=True)
    attempt.log.write_text("hello\n")
    attempt.metrics.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n')
    piece = world.control.job_logs("coder")
    assert (piece["text"], piece["final"]) == ("hello\n", False)
    assert world.control.job_logs("coder", piece["offset"])["text"] == ""
    assert world.control.job_metrics("coder", after=1) == {"rows": [{"step": 2, "loss": 2.0}], "final": False}
    job = world.control.get_job("coder")
    assert (job["step"], job["steps"], job["metrics"]["loss"]) == (2, 100, 2.0)
    world.run(10)
    attempt.metrics.unlink()  # what a job has come to is in the store
    assert world.control.get_job("coder")["step"] == 2 and world.control.job_logs("coder")["final"]


def test_status_counts(world: World) -> None:
    world.control.submit_job(world.spec(resources={"cpus": 3}))
    world.run(2)
    status = world.control.status()
    assert status["control"]["version"] and status["control"]["pid"] > 0 and status["control"]["uptime_s"] == 2.0
    assert status["jobs"] == {
        **dict.fromkeys(("queued", "starting", "succeeded", "failed", "cancelled"), 0),
        **{"running": 1},
    }
    (node,) = status["nodes"]
    assert (node["id"], node["total"]["cpus"], node["used"]["cpus"], node["foreign"]["cpus"]) == ("node-0", 4, 3, 0)


def test_the_control_module_needs_neither_torch_nor_a_web_framework() -> None:
    code = "import sys, llmos.control.control; print({'torch', 'ray', 'fastapi'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"
