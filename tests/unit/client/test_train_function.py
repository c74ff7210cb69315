"""train_function: what is sent, and what is refused before anything is."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import threading
from functools import partial
from typing import Any

import pytest

import llmos
from llmos import Client, SpecError, UsageError
from llmos.control.functions import MAX_FUNCTION_BYTES
from tests.unit.fake_api import FakeApi

RATE = 0.5


def loop(context: Any) -> float:
    return helper(context) * RATE


def helper(context: Any) -> float:
    return float(context)


def weighted(context: Any, weight: int, bias: int) -> float:
    return helper(context) * weight + bias


def sent(api: FakeApi) -> tuple[str, bytes]:
    """The address and the bytes of the function that was sent first."""
    request = next(request for request in api.requests if "/functions/" in request.url.path)
    return request.url.path.rpartition("/")[2], base64.b64decode(json.loads(request.content)["pickle"])


def test_a_function_travels_with_the_code_around_it(cluster: Client, api: FakeApi) -> None:
    job = cluster.train_function(loop, name="mine", workers=2, steps=100, retries=0, wait=False)
    sha256, content = sent(api)
    assert hashlib.sha256(content).hexdigest() == sha256
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert job.spec["function"] == {"sha256": sha256, "python": version}
    assert (job.spec["workers"]["min"], job.spec["workers"]["max"], job.spec["retries"]) == (2, 2, 0)
    assert called_elsewhere(content) == "2.0"


def test_so_does_one_whose_arguments_are_given(cluster: Client, api: FakeApi) -> None:
    cluster.train_function(partial(partial(weighted, weight=3), bias=1), name="mine", steps=100, wait=False)
    assert called_elsewhere(sent(api)[1]) == "13.0"


def called_elsewhere(content: bytes) -> str:
    """What the function makes of 4 in a process that cannot import this module."""
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read())(4))"
    done = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, check=True, env={})
    return done.stdout.decode().strip()


def test_it_is_watched_until_it_has_ended(cluster: Client, api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    job = cluster.train_function(lambda context: None, name="mine", steps=100)
    assert job.succeeded and "succeeded" in capsys.readouterr().out
    api.fate = "failed"
    with pytest.raises(llmos.TrainingError, match="boom"):
        cluster.train_function(loop, steps=100)
    assert api.jobs[-1]["name"] == "loop"  # as the function is called


def test_what_cannot_be_sent_is_said_before_anything_is(cluster: Client, api: FakeApi) -> None:
    lock, large = threading.Lock(), bytes(MAX_FUNCTION_BYTES)
    for function, said in (
        (lambda context: lock, "cannot be sent: TypeError: cannot pickle '_thread.lock' object"),
        (lambda context: large, f"expected at most {MAX_FUNCTION_BYTES:,}"),
        ("loop", "expected a function that takes a context, found str"),
    ):
        with pytest.raises(UsageError) as caught:
            cluster.train_function(function, name="mine", steps=1)  # type: ignore[arg-type]
        assert said in caught.value.message
    with pytest.raises(SpecError, match="`worker`"):
        cluster.train_function(loop, steps=1, worker=2)
    with pytest.raises(SpecError, match="steps"):
        cluster.train_function(loop)
    assert api.requests == []
