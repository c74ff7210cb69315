from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

import llmos
from llmos import (
    Client,
    Data,
    DeadlineError,
    JobView,
    ModelSource,
    Output,
    Service,
    SpecError,
    TrainingError,
    TrainJob,
    UsageError,
)
from llmos.views import MetricsRow
from tests.unit.client.conftest import URL, Clock
from tests.unit.fake_api import JOB_SPEC, KEY, FakeApi, error

YAML = """\
kind: TrainJob
name: coder
model: {preset: tiny}
data: {path: "src/*.py"}
steps: 100
output: {model: coder}
"""
JOB = TrainJob(
    name="coder",
    model=ModelSource(preset="tiny"),
    data=Data(path=("src/*.py",)),
    steps=100,
    output=Output(model="coder"),
)


def test_every_form_of_a_spec_submits_the_same_job(
    cluster: Client, api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(YAML)
    forms = (YAML, Path("job.yaml"), "job.yaml", JOB, {**JOB_SPEC, "data": {"path": "src/*.py"}})
    specs = [cluster.submit(form).spec for form in forms]
    assert all(spec == specs[0] for spec in specs)
    assert specs[0]["data"]["path"] == [str(tmp_path / "src/*.py")]


def test_paths_in_a_file_belong_to_the_file(cluster: Client, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(YAML.replace("preset: tiny", "config: shape"))
    spec = cluster.submit(tmp_path / "job.yaml").spec
    assert spec["data"]["path"] == [str(tmp_path / "src/*.py")]
    assert spec["model"] == {"config": str(tmp_path / "shape")}


def test_a_wrong_spec_never_leaves_this_machine(cluster: Client, api: FakeApi) -> None:
    with pytest.raises(SpecError, match=r"line 5: .*did you mean `steps`"):
        cluster.submit(YAML.replace("steps", "stesp"))
    with pytest.raises(UsageError, match="exactly one TrainJob or TrainFunction, found Service"):
        cluster.submit(Service(name="coder", model="coder@1"))
    with pytest.raises(UsageError, match="exactly one Service, found TrainJob, TrainJob"):
        cluster.serve(f"{YAML}---\n{YAML}")
    with pytest.raises(UsageError, match="cannot read a spec from int"):
        cluster.submit(3)  # type: ignore[arg-type]
    assert api.requests == []


def test_jobs_can_be_listed_looked_at_and_cancelled(cluster: Client, api: FakeApi) -> None:
    first, second = cluster.submit(JOB), cluster.submit(JOB)
    assert [job.id for job in cluster.jobs()] == [second.id, first.id]
    assert cluster.job("coder").id == second.id
    assert cluster.cancel(first.id).phase == "cancelled"
    api.events = [{"at": 1.0, "subject": first.id, "what": "cancelled", "why": "asked by a person"}]
    assert repr(cluster.events(first.id)[0]) == f"<{first.id}: cancelled – asked by a person>"


def test_ids_cannot_reach_another_route(cluster: Client, api: FakeApi) -> None:
    with pytest.raises(llmos.NotFoundError):
        cluster.job("../keys?x=1")
    assert api.requests[0].url.raw_path == b"/api/v1/jobs/..%2Fkeys%3Fx%3D1"


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_what_names_nothing_reaches_no_route(cluster: Client, api: FakeApi, name: str) -> None:
    for verb in (cluster.job, cluster.cancel, cluster.remove_service, cluster.remove_model, cluster.revoke_key):
        with pytest.raises(UsageError, match="a name is missing"):
            verb(name)
    assert not api.requests


def test_waiting_reports_each_metrics_row_once(cluster: Client, api: FakeApi, clock: Clock) -> None:
    api.steps_per_look = 10
    seen: list[MetricsRow] = []
    phases: list[str] = []

    def progress(job: JobView, rows: list[MetricsRow]) -> None:
        seen.extend(rows)
        phases.append(job.phase)

    job = cluster.wait(cluster.submit(JOB).id, on_progress=progress)
    assert job.succeeded and job.final and job.model == "coder@1"
    assert [row.step for row in seen] == list(range(10, 101, 10))
    assert phases[-1] == "succeeded" and set(phases) == {"running", "succeeded"}


def test_waiting_by_name_stays_with_the_job_it_began_with(cluster: Client, api: FakeApi) -> None:
    first = cluster.submit(JOB)
    api.steps_per_look = 10

    def submit_another(job: JobView, rows: list[MetricsRow]) -> None:
        if len(api.jobs) < 2:
            cluster.submit(JOB)

    done = cluster.wait("coder", on_progress=submit_another)
    assert done.id == first.id


def test_a_failed_job_is_returned_with_its_reason(cluster: Client, api: FakeApi) -> None:
    api.fate = "failed"
    job = cluster.wait(cluster.submit(JOB).id)
    assert not job.succeeded and "boom" in job.reason


def test_waiting_ends_at_its_deadline(cluster: Client, api: FakeApi, clock: Clock) -> None:
    api.steps_per_look = 0
    start = clock.now
    with pytest.raises(DeadlineError, match="gave up waiting: job coder-1 is still running"):
        cluster.wait(cluster.submit(JOB).id, timeout_s=7)
    assert 7 <= clock.now - start <= 8


def test_waiting_survives_a_control_module_that_restarts(cluster: Client, api: FakeApi) -> None:
    job = cluster.submit(JOB)
    api.trouble = [error(503, "cluster", "control restarts")] * 8
    assert cluster.wait(job.id).succeeded


def test_logs_are_whole_lines_however_they_arrive(cluster: Client, api: FakeApi) -> None:
    api.log = "first line\n\nthird, which is longer than a piece\nno newline at the end"
    api.add_job(phase="succeeded")
    assert list(cluster.logs("coder")) == api.log.split("\n")


def test_logs_are_followed_until_the_job_has_ended(cluster: Client, api: FakeApi, clock: Clock) -> None:
    api.log = "one\n"
    job = api.add_job(phase="running")
    lines = cluster.logs("coder", follow=True)
    assert next(lines) == "one"
    api.log += "two\n"
    job["phase"] = "failed"
    assert list(lines) == ["two"]


def test_logs_without_follow_do_not_wait(cluster: Client, api: FakeApi, clock: Clock) -> None:
    api.log = "one\ntwo"
    api.add_job(phase="running")
    assert list(cluster.logs("coder")) == ["one", "two"]
    assert clock.sleeps == []


def test_a_service_is_served_waited_for_and_removed(cluster: Client, api: FakeApi) -> None:
    service = cluster.serve({"kind": "Service", "name": "coder", "model": "coder@1", "replicas": {"min": 2, "max": 2}})
    assert not service.is_ready
    looks: list[str] = []
    ready = cluster.wait_service("coder", on_progress=lambda view: looks.append(view.phase))
    assert ready.is_ready and looks == ["starting", "ready"]
    assert repr(ready) == "<service coder · coder@1 · 2/2 ready>"
    cluster.remove_service("coder")
    assert cluster.services() == []


def test_a_service_that_never_gets_ready_says_what_it_waits_for(cluster: Client, api: FakeApi, clock: Clock) -> None:
    cluster.serve(Service(name="coder", model="coder@1"))
    api.service = lambda name: httpx.Response(200, json=api.services[name])  # type: ignore[method-assign]
    with pytest.raises(DeadlineError, match="service coder is not ready: loading weights"):
        cluster.wait_service("coder", timeout_s=5)


def test_models_can_be_imported_exported_and_removed(
    cluster: Client, api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cluster.import_model("coder", "weights").path == str(tmp_path / "weights")
    assert cluster.export_model("coder@1", Path("out")).path == str(tmp_path / "out")
    assert [model.ref for model in cluster.models()] == ["coder@1"]
    assert cluster.model("coder").digest.startswith("0123")
    cluster.remove_model("coder@1")
    assert cluster.models() == []


def test_a_key_shows_its_secret_only_when_asked(cluster: Client) -> None:
    key = cluster.create_key("me", ["infer", "submit"])
    assert key.secret not in repr(key) and key.secret not in repr([key])
    cluster.revoke_key(key.id)
    assert cluster.keys()[0].revoked_at


def test_text_from_a_served_model(cluster: Client, api: FakeApi) -> None:
    assert cluster.complete("coder", "def f", max_tokens=8, seed=1) == "def f and so on"
    assert json.loads(api.requests[0].content) == {"model": "coder", "prompt": "def f", "max_tokens": 8, "seed": 1}
    assert cluster.chat("coder", "hello") == "re: hello"
    assert cluster.chat("coder", [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]) == "re: b"
    with pytest.raises(UsageError, match="whole text") as caught:
        cluster.chat("coder", "hello", stream=True)
    assert "openai()" in caught.value.hint


def test_the_openai_client_is_bound_to_the_cluster(cluster: Client) -> None:
    client = cluster.openai()
    assert str(client.base_url) == f"{URL}/v1/"
    assert client.api_key == KEY


def test_views_read_as_json_and_as_attributes(cluster: Client, api: FakeApi) -> None:
    api.add_job(phase="running", step=50, metrics={"loss": 2.5}, brand_new_field=1)
    job = cluster.job("coder")
    assert json.loads(json.dumps(job))["brand_new_field"] == job.brand_new_field == 1
    assert repr(job) == "<job coder-1 · succeeded · step 100/100 · loss 2.667 · model coder@1>"
    with pytest.raises(AttributeError, match="JobView has no field `color`; it has id, name"):
        _ = job.color
    assert repr(cluster) == f"<llmos.Client {URL}>"


def test_status_is_what_the_cluster_says(cluster: Client) -> None:
    assert cluster.status().control["pid"] == 42


def test_connect_uses_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("LLMOS_API_KEY", "k")
    with llmos.connect() as client:
        assert client.connection.url == "http://127.0.0.1:1"


def test_train_submits_watches_and_returns_the_model(
    cluster: Client, api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    job = cluster.train(
        **{"name": "coder", "model": {"preset": "tiny"}, "data": {"path": "src/*.py"}},
        **{"steps": 100, "mesh": llmos.Mesh(dp=2)},
    )
    assert (job.phase, job.model) == ("succeeded", "coder@1")
    sent = api.jobs[0]["spec"]
    assert sent["data"]["path"] == [str(tmp_path / "src/*.py")]
    assert (sent["output"]["model"], sent["mesh"]["dp"], sent["workers"]["max"]) == ("coder", 2, 2)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("<job coder-1 · running") and printed[-1].startswith("<job coder-1 · succeeded")
    changed = cluster.train(JOB, steps=50, on_progress=lambda job, rows: None)
    assert changed.steps == 50 and capsys.readouterr().out == ""


def test_train_raises_what_went_wrong(cluster: Client, api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.fate = "failed"
    with pytest.raises(TrainingError, match=r"job coder-1 failed: attempt 1 failed: ValueError: boom\n.*logs"):
        cluster.train(JOB)
    with pytest.raises(SpecError, match="`steps` is missing"):
        cluster.train(name="coder", model={"preset": "tiny"}, data={"path": "a"})
    with pytest.raises(UsageError, match="expected exactly one TrainJob, found Service"):
        cluster.train("kind: Service\nname: chat\nmodel: coder@1\n")

    def interrupt(job: JobView, rows: list[Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cluster.train(JOB, on_progress=interrupt)
    assert "job coder-2 goes on: come back with `.wait('coder-2')`" in capsys.readouterr().out
    assert api.jobs[-1]["phase"] != "cancelled"


def test_tenants_can_be_put_listed_and_looked_at(cluster: Client, api: FakeApi) -> None:
    vision = cluster.put_tenant(llmos.Tenant(name="vision", share=2.0, quota=llmos.Quota(gpus=8.0)))
    assert repr(vision) == "<tenant vision · share 2 · 1 running, 2 waiting>" and vision.quota == {"gpus": 8.0}
    assert [tenant.name for tenant in cluster.tenants()] == ["default", "vision"]
    assert cluster.tenant("vision").used_gpu_hours == 12.5
    with pytest.raises(llmos.ConflictError, match="exists already"):
        cluster.put_tenant({"kind": "Tenant", "name": "vision"}, new=True)
    with pytest.raises(UsageError, match="exactly one Tenant, found TrainJob"):
        cluster.put_tenant(JOB)
    assert cluster.create_key("ci", ["submit"], "vision").tenant == "vision"
    with pytest.raises(llmos.ConflictError, match="tenant `vision` is still in use"):
        cluster.remove_tenant("vision")
    api.keys.clear()
    cluster.remove_tenant("vision")
    assert [tenant.name for tenant in cluster.tenants()] == ["default"]
