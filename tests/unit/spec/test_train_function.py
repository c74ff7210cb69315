"""TrainFunction: what it accepts, and what it says of what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from llmos.errors import SpecError
from llmos.spec import TrainFunction, Workers, load, parse, to_dict

SENT = {"sha256": "a" * 64, "python": "3.12"}


def spec(**changes: Any) -> TrainFunction:
    fields = {"kind": "TrainFunction", "name": "mine", "function": {"call": "loop:main"}, "steps": 10}
    job = parse(fields | changes)
    assert isinstance(job, TrainFunction)
    return job


def test_runs_on_any_number_of_workers_between_its_fewest_and_most() -> None:
    job = spec(workers={"min": 2, "max": 4})
    assert [mesh.size for mesh in job.meshes] == [2, 3, 4]
    assert job.placed_mesh.size == 2
    assert job.on(3).workers == Workers(min=3, max=3)
    assert parse(to_dict(job)) == job
    assert parse(to_dict(spec(function=SENT))) == spec(function=SENT)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"function": {}}, "expected exactly one of `call` and `sha256`, found none"),
        ({"function": {"call": "loop:main", **SENT}}, "found call and sha256"),
        ({"function": {"call": "loop.main"}}, "expected `module:function`, as in `loop:main`"),
        ({"function": {"path": "/code", **SENT}}, "`path` is where the module of `call` is"),
        ({"function": {"sha256": "a" * 64}}, "`sha256` and `python` go together"),
        ({"function": {"sha256": "A" * 64, "python": "3.12"}}, "not a SHA-256"),
        ({"function": {"sha256": "a" * 64, "python": "two"}}, "not a version of Python"),
        ({"watchdog": {"slow_rank": 2.0}}, "`slow_rank` needs the loop of a TrainJob"),
        ({"env": {"A": "1"}, "secrets": {"A": "env:A"}}, "`A` is in both `env` and `secrets`"),
        ({"secrets": {"A": "hunter2"}}, "not a reference to a secret"),
        ({"mesh": {"tp": 2}}, "`mesh`"),
        ({"step": 1}, "steps"),
    ],
)
def test_says_what_is_wrong(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec(**changes)
    assert said in str(caught.value) and "hunter2" not in str(caught.value)


def test_a_file_says_the_line() -> None:
    text = "kind: TrainFunction\nname: mine\nsteps: 3\nfunction:\n  cal: loop:main\n"
    with pytest.raises(SpecError, match=r"line 5: .*`call`"):
        load(text)
