from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmos.errors import NotFoundError, SpecError, UsageError
from llmos.sources import anchored, override, specs
from llmos.spec import Data, Service, Source, TrainJob, parse
from tests.unit.fake_api import JOB_SPEC


@pytest.fixture
def job() -> TrainJob:
    spec = parse(JOB_SPEC)
    assert isinstance(spec, TrainJob)
    return spec


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("steps=30", {"steps": 30}),
        ("optimizer.learning_rate=3e-4", {"optimizer": {"learning_rate": 3e-4}}),
        ("mesh.dp=2", {"mesh": {"dp": 2}, "workers": {"min": 2, "max": 2}}),
        ("mesh=auto", {"mesh": "auto"}),
        ("data.path=[a, b]", {"data": {"path": ("a", "b")}}),
        ("env.A=x=y", {"env": {"A": "x=y"}}),
        ("max_runtime=2h", {"max_runtime": 7200.0}),
    ],
)
def test_a_setting_changes_its_field_and_what_follows_from_it(
    job: TrainJob, setting: str, expected: dict[str, Any]
) -> None:
    changed = override(job, [setting]).model_dump()
    for field, value in expected.items():
        assert changed[field] == (value if not isinstance(value, dict) else changed[field] | value)
    untouched = {name: value for name, value in job.model_dump().items() if name not in expected}
    assert {name: changed[name] for name in untouched} == untouched


def test_the_last_setting_of_a_field_holds_and_others_stay_written(job: TrainJob) -> None:
    changed = override(job, ["steps=1", "optimizer.weight_decay=0", "optimizer.learning_rate=1", "steps=2"])
    assert (changed.steps, changed.optimizer.weight_decay, changed.optimizer.learning_rate) == (2, 0, 1)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("steps", "`--set steps`: expected FIELD=VALUE"),
        ("=3", "`--set =`: expected FIELD=VALUE"),
        ("steps=many", "`steps`: expected a whole number"),
        ("stesp=3", "did you mean `steps`"),
        ("steps=[1", "`--set steps`: not YAML"),
        ("steps.deep=1", "`steps`: expected a whole number"),
        ("kind=Service", "Service"),
        ("steps=1\n---\n2", "`--set steps`: expected one value"),
    ],
)
def test_a_wrong_setting_says_so(job: TrainJob, setting: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        override(job, [setting])


def test_home_is_the_persons_home(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    moved = job.model_copy(update={"data": job.data.model_copy(update={"path": ("~/text", "/abs", "rel/**")})})
    assert anchored(moved, Path("/base")).data.path == ("/home/ada/text", "/abs", "/base/rel/**")  # type: ignore[union-attr]


def test_paths_of_a_mixture_are_anchored_and_uris_are_not(job: TrainJob) -> None:
    sources = (Source(path=("rel", "s3://bucket/x"), weight=2.0), Source(path=("/abs",)))
    mixed = job.model_copy(update={"data": Data(sources=sources)})
    moved = anchored(mixed, Path("/base"))
    assert isinstance(moved, TrainJob)
    assert [source.path for source in moved.data.mixture] == [("/base/rel", "s3://bucket/x"), ("/abs",)]
    assert moved.data.mixture[0].weight == 2.0


def test_a_file_may_hold_several_kinds(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text("kind: Service\nname: a\nmodel: m\n---\nkind: Service\nname: b\nmodel: m@2\n")
    assert [spec.name for spec in specs(file)] == ["a", "b"]
    assert all(isinstance(spec, Service) for spec in specs(file))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere.yaml"):
        specs(str(tmp_path / "nowhere.yaml"))


def test_text_is_not_mistaken_for_a_file() -> None:
    with pytest.raises(SpecError, match="line 1"):
        specs("kind: Nothing\nname: x\n")
