"""Text, files and dictionaries become specs, and specs become text, dictionaries, digests and a schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from llmos.errors import NotFoundError, SpecError, UsageError
from llmos.spec import (
    PRESETS,
    CheckpointPolicy,
    Mesh,
    Service,
    TrainJob,
    Workers,
    digest,
    json_schema,
    load,
    load_file,
    parse,
    to_dict,
    to_yaml,
)
from llmos.spec.nodes import MAX_CHARACTERS, MAX_DEPTH, MAX_VALUES
from tests.unit.spec.examples import SERVICE, TRAIN_JOB

SCHEMA = Draft202012Validator(json_schema())
MINIMAL = {"name": "a", "model": {"preset": "tiny"}, "data": {"path": "x"}, "steps": 1, "output": {"model": "m"}}


def train_job(**fields: Any) -> TrainJob:
    spec = parse({"kind": "TrainJob", **MINIMAL, **fields})
    assert isinstance(spec, TrainJob)
    return spec


def test_a_file_may_hold_several_kinds() -> None:
    job, service = load(f"---\n{TRAIN_JOB}---\n# nothing here\n---\n{SERVICE}...\n")
    assert isinstance(job, TrainJob) and isinstance(service, Service)
    assert (job.mesh, job.workers, job.data.path) == (Mesh(dp=2), Workers(min=2, max=2), ("src/**/*.py",))
    assert (job.optimizer.learning_rate, job.optimizer.betas, job.max_runtime) == (3e-4, (0.9, 0.95), None)
    assert (service.model, service.replicas.min, service.resources.cpus) == ("stdlib-coder@1", 1, 1.0)


def test_workers_follow_an_explicit_mesh_and_an_automatic_mesh_follows_the_workers() -> None:
    assert train_job(mesh={"dp": 4}).workers == Workers(min=4, max=4)
    assert train_job().placed_mesh == Mesh(dp=1)
    assert train_job(workers={"min": 2, "max": 8}).placed_mesh == Mesh(dp=2)
    assert train_job(mesh={"dp": 3}, workers={"min": 2, "max": 4}, batch_size=6).placed_mesh == Mesh(dp=3)


def test_a_range_of_workers_lets_dp_vary_or_fsdp_and_nothing_else() -> None:
    def sizes(**fields: object) -> list[Mesh]:
        return list(train_job(batch_size=12, **fields).meshes)

    assert sizes() == [Mesh()]
    assert sizes(workers={"min": 1, "max": 5}) == [Mesh(), Mesh(dp=2), Mesh(dp=3), Mesh(dp=4)]  # 5 do not divide 12
    assert sizes(mesh={"tp": 2}, workers={"min": 2, "max": 5}) == [Mesh(tp=2), Mesh(tp=2, dp=2)]
    assert sizes(mesh={"fsdp": 2}, workers={"min": 1, "max": 3}) == [Mesh(), Mesh(fsdp=2), Mesh(fsdp=3)]
    assert sizes(mesh={"dp": 2, "fsdp": 2}, workers={"min": 2, "max": 8}) == [
        Mesh(fsdp=2), Mesh(dp=2, fsdp=2), Mesh(dp=3, fsdp=2),
    ]  # fmt: skip
    on_three = train_job(batch_size=12, workers={"min": 1, "max": 5}).on(3)
    assert (on_three.placed_mesh, on_three.workers.min, on_three.workers.max) == (Mesh(dp=3), 3, 3)


def test_async_is_a_word_of_python_but_a_field_all_the_same() -> None:
    job = train_job(checkpoint={"async": False, "every": "10m"})
    assert (job.checkpoint.asynchronous, job.checkpoint.every, job.checkpoint.every_steps) == (False, 600.0, 100)
    assert CheckpointPolicy(asynchronous=False, every="10m") == job.checkpoint  # type: ignore[arg-type]
    assert to_dict(job)["checkpoint"]["async"] is False
    assert load(to_yaml(job)) == [job]


@pytest.mark.parametrize(
    ("text", "value"),
    [("90s", 90), ("2h", 7200), ("1h30m", 5400), ("1.5d", 129600), ("1d2h3m4s", 93784), ("45", 45), ("0.5", 0.5)],
)
def test_durations(text: str, value: float) -> None:
    (job,) = load(f"{TRAIN_JOB}max_runtime: {text}\n")
    assert isinstance(job, TrainJob) and job.max_runtime == value


@pytest.mark.parametrize("text", ["0", "-1s", "1s2h", "h", "''", "1e400", "true", "[1]", "9" * 400 + "d", "1 h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(SpecError, match="line 10: `max_runtime`: not a duration"):
        load(f"{TRAIN_JOB}max_runtime: {text}\n")


@pytest.mark.parametrize(
    ("text", "value"), [("512MiB", 2**29), ("2GB", 2 * 10**9), ("1.5 KiB", 1536), ("7B", 7), ("4096", 4096)]
)
def test_sizes(text: str, value: int) -> None:
    (service,) = load(f"{SERVICE}resources: {{memory: {text}}}\n")
    assert isinstance(service, Service) and service.resources.memory == value


@pytest.mark.parametrize("text", ["0", "-1GB", "2G", "0.5B", "1.5", "GiB", "true", "9" * 400 + "GiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(SpecError, match=r"line 6: `resources.memory`: not a size"):
        load(f"{SERVICE}resources: {{memory: {text}}}\n")


def test_a_secret_is_a_reference() -> None:
    job = train_job(secrets={"A": "env:HF_TOKEN", "B": "file:/run/secrets/b"}, env={"C": "1"})
    assert job.secrets == {"A": "env:HF_TOKEN", "B": "file:/run/secrets/b"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind: TrainJob\n\tname: x\n", "line 2: not YAML: a tab where only spaces may be: indent with spaces"),
        (
            "kind: [1\n",
            "line 2: not YAML: expected ',' or ']', but got '<stream end>' while parsing a flow sequence",
        ),
        ("a: 1\n---\nb: *x\n", "line 3: not YAML: an alias (`*…`) of nothing: put text that begins with `*` in quotes"),
        ("a: 1\n\x00", "line 2: not YAML: character 0 is not allowed in text"),
        (
            "kind: Service\nname: !!python/object/apply:os.system [id]\n",
            "line 2: tags are not supported: put text that begins with `!` in quotes",
        ),
        (
            f"{SERVICE}? [a, list]\n: as key\n",
            "line 6: a key is a list or mapping: expected text",
        ),
        (f"{SERVICE}name: again\n", "line 6: `name` appears twice, first on line 2: expected it once"),
        (
            SERVICE.replace("{tp: 1, pp: 1}", "{tp: 1, tp: 1}"),
            "line 4: `tp` appears twice, first on line 4: expected it once",
        ),
        (f"{SERVICE}<<: {{tp: 1}}\n", "line 6: `<<` is not a field of `Service`; its fields are kind, name, "),
        (
            "a: &a\n  b: *a\n",
            f"line 1: nested too deeply: expected at most {MAX_DEPTH} levels (does an alias contain itself?)",
        ),
        ("[" * 100_000, f"line 1: nested too deeply: expected at most {MAX_DEPTH} levels"),
        (
            "a: &a [" + "1, " * 50 + "]\nb: &b [" + "*a, " * 50 + "]\nc: [" + "*b, " * 50 + "]\n",
            f"line 1: too large once its aliases are expanded: expected at most {MAX_VALUES} values",
        ),
        (
            " " * (MAX_CHARACTERS + 1),
            f"line 1: too long: expected at most {MAX_CHARACTERS} characters, found {MAX_CHARACTERS + 1}",
        ),
    ],
    ids=lambda text: text[:30],
)
def test_yaml_that_cannot_be_read(text: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(text)
    assert any(problem.startswith(expected) for problem in caught.value.problems), caught.value.problems


def test_an_alias_is_what_its_anchor_is() -> None:
    (twice,) = load(SERVICE.replace("name: coder", "name: &n coder").replace("stdlib-coder@1", "*n"))
    assert isinstance(twice, Service) and twice.model == "coder"


@pytest.mark.parametrize("text", ["no", "on", "off", "1_000", "1:30", "2001-12-14", "=", "<<", "0o14", "y", "1e", "."])
def test_text_stays_text_as_yaml_1_2_says(text: str) -> None:
    assert load(f"{TRAIN_JOB}env: {{A: {text}}}\n")[0].env == {"A": text}  # type: ignore[union-attr]


@pytest.mark.parametrize(("text", "value"), [("3e-4", 3e-4), ("1", 1.0), (".5", 0.5), ("+1.E+0", 1.0), ("0x1", 1.0)])
def test_numbers_are_numbers_as_yaml_1_2_says(text: str, value: float) -> None:
    (job,) = load(TRAIN_JOB.replace("3.0e-4", text))
    assert isinstance(job, TrainJob) and job.optimizer.learning_rate == value


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + TRAIN_JOB.replace("\n", "\r\n").encode())
    assert load_file(path) == load(TRAIN_JOB) == load_file(str(path))
    path.write_text(TRAIN_JOB.replace("steps: 400", "steps: 0"))
    with pytest.raises(SpecError, match=r"job.yaml has 1 problem:\n  line 8: "):
        load_file(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file `.*absent.yaml`"):
        load_file(tmp_path / "absent.yaml")
    with pytest.raises(UsageError, match="cannot read `.*`: Is a directory"):
        load_file(tmp_path)
    path = tmp_path / "job.yaml"
    path.write_bytes(b"# \xc3\xa9" * 5000 + b"\xff")
    with pytest.raises(UsageError, match=r"is not UTF-8 text \(byte 20000\)"):
        load_file(path)
    path.write_bytes(b"")
    with pytest.raises(SpecError, match="nothing here"):
        load_file(path)
    path.write_text("é" * (4 * MAX_CHARACTERS))
    with pytest.raises(SpecError, match="too long"):
        load_file(path)


names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
variables = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True)
texts = st.text(st.characters(codec="utf-8") | st.sampled_from("\n\r\t\x85\u2028: #'\""), max_size=20)
resources = st.fixed_dictionaries(
    {"cpus": st.floats(0.01, 64)},
    optional={"gpus": st.floats(0, 8), "memory": st.integers(1, 2**40) | st.sampled_from(["1GiB", "2.5MB"])},
)
train_jobs = st.fixed_dictionaries(
    {
        "kind": st.just("TrainJob"),
        "name": names,
        "model": st.sampled_from([{"preset": name} for name in PRESETS] + [{"config": "./dir"}, {"ref": "m@3"}]),
        "data": st.fixed_dictionaries({"path": texts.filter(bool) | st.lists(st.just("*.txt"), min_size=1)}),
        "steps": st.integers(1, 2**53),
        "output": st.fixed_dictionaries({"model": names}),
    },
    optional={
        "mesh": st.sampled_from(["auto", {"dp": 1}, {}, {"tp": 1, "dp": 1}]),
        "optimizer": st.fixed_dictionaries(
            {}, optional={"learning_rate": st.floats(1e-300, 1e300), "name": st.sampled_from(["adamw", "muon"])}
        ),
        "resources": resources,
        "env": st.dictionaries(variables, texts, max_size=3),
        "max_runtime": st.floats(1e-3, 2**53) | st.sampled_from(["90s", "1d"]),
        "seed": st.integers(0, 2**53),
    },
)
services = st.fixed_dictionaries(
    {"kind": st.just("Service"), "name": names, "model": names | names.map("{}@7".format)},
    optional={"resources": resources, "context_length": st.none() | st.integers(1, 2**53)},
)


@given(train_jobs | services)
def test_a_spec_survives_every_form_it_takes(data: dict[str, Any]) -> None:
    spec = parse(data)
    assert parse(to_dict(spec)) == spec
    assert parse(json.loads(json.dumps(to_dict(spec)))) == spec
    assert load(to_yaml(spec)) == [spec]
    assert digest(parse(to_dict(spec))) == digest(spec)
    SCHEMA.validate(data)
    SCHEMA.validate(to_dict(spec))


def test_the_digest_is_of_the_meaning() -> None:
    (job,) = load(TRAIN_JOB)
    reordered = "\n".join(reversed(TRAIN_JOB.splitlines()))
    written_out = (
        TRAIN_JOB.replace('"src/**/*.py"', "['src/**/*.py'], vocab_size: 4096") + "max_runtime: 1h # an hour\n"
    )
    assert digest(load(reordered)[0]) == digest(job)
    assert digest(load(written_out)[0]) == digest(load(TRAIN_JOB + "max_runtime: 3600\n")[0]) != digest(job)
    assert re.fullmatch(r"[0-9a-f]{64}", digest(job))


@given(train_jobs, train_jobs)
def test_digests_differ_when_specs_do(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (digest(parse(one)) == digest(parse(other))) == (to_dict(parse(one)) == to_dict(parse(other)))


def test_the_schema_is_a_schema_and_accepts_the_examples() -> None:
    Draft202012Validator.check_schema(json_schema())
    for document in yaml.safe_load_all(f"{TRAIN_JOB}---\n{SERVICE}"):
        SCHEMA.validate(document)


@pytest.mark.parametrize(
    "change", [{"nmae": 1}, {"kind": "Job"}, {"steps": 0}, {"steps": "1"}, {"mesh": "Auto"}, {"data": {"path": []}}]
)
def test_the_schema_refuses_what_load_refuses(change: dict[str, Any]) -> None:
    data = {"kind": "TrainJob", **MINIMAL}
    assert SCHEMA.is_valid(data)
    assert not SCHEMA.is_valid(data | change)
    assert not SCHEMA.is_valid({key: value for key, value in data.items() if key != "kind"})
    with pytest.raises(SpecError):
        parse(data | change)
