"""``wake_s``: how long the first request waits for its first token at a service that has no replica.

    python -m benchmarks.frontdoor.wake_row ROUNDS      prints the row; starts a cluster of its own

The node is warm: the service was awake before, so its files are cached, and its engine's step is compiled, which an
engine that lives for less than a minute may not come to. Between two rounds the service is removed, with its replica,
and put there again at zero.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

import httpx
import psutil

import llmos
from benchmarks.cluster import LLMOS, ROOT, until
from benchmarks.contenders import run
from benchmarks.rows import Measured, Options, Unmeasured
from benchmarks.serve_models import SMOLLM_135M
from llmos.control.ray.processes import free_ports
from llmos.errors import LlmosError
from llmos.infer.native.build import build
from llmos.settings import Connection, connection
from llmos.spec.load import parse

ROUNDS, QUICK_ROUNDS = 5, 1
_TIMEOUT_S = 1200.0
_ANSWER_S = 180.0
_NAME = "sleeper"
_PROMPT = "abcd efgh ijkl"


def wake_s(options: Options) -> Measured:
    """From sending a request to its first token, 135 M parameters, random weights."""
    if options.device != "cpu":
        raise Unmeasured("skipped: a row of the CPU; run without DEVICE")
    try:
        _spec()
    except LlmosError as error:
        raise Unmeasured(f"skipped: services of this version cannot be at zero replicas: {error.message}") from error
    SMOLLM_135M.written()
    rounds = str(QUICK_ROUNDS if options.quick else ROUNDS)
    command = [sys.executable, "-m", "benchmarks.frontdoor.wake_row", rounds]
    return Measured(**json.loads(run(command, dict(os.environ), ROOT, _TIMEOUT_S).splitlines()[-1]))


def _spec() -> llmos.Service:
    """Raises SpecError."""
    fields = {"kind": "Service", "name": _NAME, "model": _NAME, "replicas": {"min": 0, "max": 1}, "dtype": "bfloat16"}
    service = parse(fields)
    assert isinstance(service, llmos.Service)
    return service


@contextmanager
def _cluster() -> Iterator[Connection]:
    """A cluster with nothing in it, for a user whose engines are compiled."""
    with tempfile.TemporaryDirectory(prefix="llmos-wake-", ignore_cleanup_errors=True) as home:
        os.environ.update(HOME=home, LLMOS_STATE_DIR=f"{home}/state", OMP_NUM_THREADS="1")
        os.environ.setdefault("PYTHONPATH", str(ROOT))
        build()
        subprocess.run([LLMOS, "up", "--port", str(free_ports(1)[0])], check=True, stdout=subprocess.DEVNULL)
        try:
            yield connection()
        finally:
            subprocess.run([LLMOS, "down"], check=True, stdout=subprocess.DEVNULL)


def measured(rounds: int) -> Measured:
    """``rounds`` wakes after a first one, which warms the node."""
    with ExitStack() as stack:
        to = stack.enter_context(_cluster())
        client = stack.enter_context(llmos.Client.of(to))
        client.import_model(_NAME, SMOLLM_135M.directory)
        found = [_wake_s(client, to) for _ in range(rounds + 1)]
    cold_s, *warm_s = found
    also = {"first_s": cold_s, "least": min(warm_s), "most": max(warm_s)}
    return Measured(statistics.median(warm_s), why=f"{rounds} wakes on a warm node, zero to first token", also=also)


def _wake_s(client: llmos.Client, to: Connection) -> float:
    client.serve(_spec())
    until(lambda: _known(to))
    assert not _engines(), "the service has a replica before anybody has asked"
    began = time.perf_counter()
    _first_token(to)
    found_s = time.perf_counter() - began
    client.remove_service(_NAME)
    until(lambda: not _engines())
    return found_s


def _known(to: Connection) -> bool:
    """Whether the front door lists the service."""
    listed = httpx.get(f"{to.url}/v1/models", headers={"Authorization": f"Bearer {to.key}"})
    return any(card["id"] == _NAME for card in listed.raise_for_status().json()["data"])


def _first_token(to: Connection) -> None:
    """Ask, and read until there is text. Raises RuntimeError for any other end."""
    body = {"model": _NAME, "prompt": _PROMPT, "max_tokens": 8, "ignore_eos": True, "stream": True}
    headers = {"Authorization": f"Bearer {to.key}"}
    with httpx.stream("POST", f"{to.url}/v1/completions", json=body, headers=headers, timeout=_ANSWER_S) as answer:
        seen = []
        for line in answer.iter_lines():
            seen.append(line)
            event = json.loads(line.removeprefix("data:")) if line.startswith("data: {") else {}
            if any(choice.get("text") for choice in event.get("choices", ())):
                return
    raise RuntimeError(f"no token came, status {answer.status_code}: {' | '.join(seen[-5:])}")


def _engines() -> list[psutil.Process]:
    """The engines of this cluster."""
    found = []
    for process in psutil.process_iter():
        try:
            if "llmos.infer.child" in process.cmdline() and process.environ().get("HOME") == os.environ["HOME"]:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return found


if __name__ == "__main__":
    print(json.dumps(asdict(measured(int(sys.argv[1])))))
