"""Functions that users send: kept as bytes that nobody looks into, and jobs that call them."""

from __future__ import annotations

import base64
import hashlib
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from llmos.control.functions import KEPT_S, MAX_FUNCTION_BYTES
from llmos.errors import LlmosError, NotFoundError, UsageError
from llmos.sim.cluster import Outcome
from tests.unit.control.world import World

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


class Trap:
    """Leaves a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def encoded(content: bytes) -> tuple[str, str]:
    return hashlib.sha256(content).hexdigest(), base64.b64encode(content).decode()


def spec(sha256: str, python: str = PYTHON, **changes: Any) -> dict[str, Any]:
    function = {"sha256": sha256, "python": python}
    return {"kind": "TrainFunction", "name": "mine", "steps": 5, "function": function, **changes}


def test_a_function_is_kept_and_never_loaded(world: World, tmp_path: Path) -> None:
    content = pickle.dumps(Trap(tmp_path / "loaded"))
    sha256, text = encoded(content)
    assert world.control.put_function(sha256, text) == world.control.put_function(sha256, text)
    kept = world.layout.function(sha256)
    assert kept.read_bytes() == content and kept.stat().st_mode & 0o777 == 0o600
    job = world.control.submit_job(spec(sha256, workers={"min": 2, "max": 2}))
    world.run(30)
    done = world.control.get_job(job["id"])
    assert (done["phase"], done["steps"], done["model"]) == ("succeeded", 5, None)
    assert not (tmp_path / "loaded").exists()
    pickle.loads(content)
    assert (tmp_path / "loaded").exists()  # it would have been


@pytest.mark.parametrize(
    ("sha256", "text", "said"),
    [
        ("a" * 64, encoded(b"x")[1], "the function has SHA-256"),
        ("../../client.json", encoded(b"x")[1], "expected ../../client.json"),
        ("a" * 64, "no base64!", "`pickle` is not base64"),
        (*encoded(bytes(MAX_FUNCTION_BYTES + 1)), f"expected at most {MAX_FUNCTION_BYTES:,}"),
    ],
)
def test_what_is_not_what_it_says_is_not_kept(world: World, sha256: str, text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        world.control.put_function(sha256, text)
    assert said in caught.value.message
    assert not (world.layout.root / "functions").exists()


def test_a_job_whose_function_cannot_be_called_is_refused(world: World, tmp_path: Path) -> None:
    sha256, text = encoded(b"code")
    called = {"call": "loop:main", "path": str(tmp_path / "nowhere")}
    for asked, expected, said in (
        (spec(sha256), NotFoundError, "no function"),
        (spec(sha256, "3.9"), UsageError, f"was sent from Python 3.9: the cluster runs Python {PYTHON}"),
        (spec(sha256) | {"function": called}, NotFoundError, "expected the directory of module `loop`"),
        (spec(sha256) | {"function": {**called, "path": "code"}}, UsageError, "is not absolute"),
        ({"kind": "Service", "name": "s", "model": "coder@1"}, UsageError, "expected a job, found a Service"),
    ):
        with pytest.raises(LlmosError) as caught:
            world.control.submit_job(asked)
        assert isinstance(caught.value, expected) and said in caught.value.message
    assert world.control.list_jobs() == []
    world.control.put_function(sha256, text)
    assert world.control.submit_job(spec(sha256))["phase"] == "queued"


def test_a_function_is_deleted_once_no_unfinished_job_names_it(world: World) -> None:
    """Not before some time has passed since it was sent: the job that names it may be on its way."""
    sent = [encoded(content) for content in (b"named by a job that runs", b"named by one that has ended", b"by none")]
    runs, has_ended, unnamed = (world.layout.function(sha256) for sha256, _ in sent)
    for sha256, text in sent:
        world.control.put_function(sha256, text)
    world.outcomes["long-1"] = [Outcome(10 * KEPT_S)]
    world.control.submit_job(spec(sent[0][0], name="long"))
    world.control.submit_job(spec(sent[1][0], name="short"))
    world.run(0.9 * KEPT_S, step_s=5)
    assert world.control.get_job("short")["phase"] == "succeeded" and has_ended.exists() and unnamed.exists()
    world.control.put_function(*sent[2])  # again: its time begins anew
    world.run(1.0 * KEPT_S, step_s=5)
    assert runs.exists() and unnamed.exists() and not has_ended.exists()
    world.run(2.0 * KEPT_S, step_s=5)
    assert runs.exists() and not unnamed.exists()
    with pytest.raises(NotFoundError, match="it was not sent, or the jobs that named it have ended"):
        world.control.submit_job(spec(sent[2][0]))
