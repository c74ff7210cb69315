"""`llmos status`: one screen, at once."""

from __future__ import annotations

import copy
import subprocess
from typing import Any

import httpx
import pytest

from llmos.cli import glance
from llmos.settings import Connection
from tests.unit.cli.conftest import Run
from tests.unit.cli.test_app import process
from tests.unit.fake_api import KEY, NODE, STATUS, FakeApi, listening, ok

Row = dict[str, Any]


def node(id: str, **fields: Any) -> Row:
    return copy.deepcopy(NODE) | {"id": id} | fields


def large() -> Row:
    """A cluster that would fill many screens."""
    nodes = [node(f"{i:016}") for i in range(500)] + [node("big", kind="gpu")]
    nodes += [node(f"drained-{i:02}", state="draining", why="fan") for i in range(20)]
    nodes += [node("guilty", state="quarantined", why="2 jobs failed on it within 60 minutes: a, b")]
    gpus = {"total": 522.0, "used": 400.0, "lent": 8.0, "foreign": 2.0, "free": 100.0, "closed": 20.0}
    queues = [STATUS["queues"][0] | {"tenant": f"team-{i}", "waiting": 300} for i in range(30)]
    services = [STATUS["services"][0] | {"name": f"chat-{i}"} for i in range(40)]
    more = {"queues": queues, "services": services, "waiting": {f"w-{i}": "needs 1 bundle of 1 GPU" for i in range(99)}}
    return STATUS | {"nodes": nodes, "gpus": gpus, **more}


def test_a_large_cluster_is_one_screen(llmos: Run, api: FakeApi) -> None:
    api.status = large()
    lines = llmos("status").out.splitlines()
    assert len(lines) <= 60
    assert lines[2] == "GPUs     522: 400 used (8 of them lent), 2 foreign, 100 free, 20 on nodes that take no work"
    shown = [" ".join(line.split()) for line in lines]
    assert "500 nodes 1750/4000 (500 foreign) 500/500 0 B/1.0 TB alive" in shown
    assert "1 node of kind gpu 3.5/8 (1 foreign) 1/1 0 B/2.0 GB alive" in shown
    assert "drained-00 3.5/8 (1 foreign) 1/1 0 B/2.0 GB draining fan" in shown
    assert "8 more draining" in shown and "1 more quarantined" in shown
    assert "and 20 more: `llmos status -o json`" in shown and "and 30 more: `llmos services`" in shown
    assert "and 8,995 more: `llmos queue`" in shown


def test_a_small_cluster_names_each_node_and_why_it_takes_no_work(llmos: Run, api: FakeApi) -> None:
    api.status = STATUS | {"nodes": [node("n0"), node("n1", state="quarantined", why="2 jobs failed on it")]}
    lines = [" ".join(line.split()) for line in llmos("status").out.splitlines()]
    assert "NODE CPUS GPUS MEMORY STATE WHY" in lines
    assert "n1 3.5/8 (1 foreign) 1/1 0 B/2.0 GB quarantined 2 jobs failed on it" in lines


def test_a_cluster_without_gpus_or_jobs(llmos: Run, api: FakeApi) -> None:
    nothing = {"gpus": dict.fromkeys(STATUS["gpus"], 0.0), "jobs": {"queued": 0}, "queues": [], "waiting": {}}
    api.status = STATUS | nothing | {"services": []}
    lines = llmos("status").out.splitlines()
    assert lines[1:3] == ["jobs     none", "CPUs     8: 2.5 used, 1 foreign, 4.5 free"]


MODULES = 90
"""`llmos status` loads at most so many beyond those of a bare Python: 77 were seen."""


def test_the_status_loads_little(api: FakeApi) -> None:
    """What is loaded decides how long it takes, and is the same on a machine that is slow or busy."""
    code = (
        "import sys; sys.argv = ['llmos', 'status']; bare = set(sys.modules)\n"
        "from llmos.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: print(*(set(sys.modules) - bare), file=sys.stderr)"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with listening(api) as url, process("status", url=url, main=code, **pipes) as command:
        out, loaded = (text.decode() for text in command.communicate(timeout=30))
    assert "coder-3" in out
    heavy = {"ray", "torch", "numpy", "pydantic", "httpx", "typer", "openai", "yaml", "rich", "fastapi", "sqlalchemy"}
    assert not {name.partition(".")[0] for name in loaded.split()} & heavy
    assert len(loaded.split()) <= MODULES, loaded


@pytest.mark.parametrize("trouble", ["nobody", "refused", "no JSON", "no object"])
def test_what_does_not_answer_at_once_is_asked_by_the_client(api: FakeApi, trouble: str) -> None:
    """A second request, by the client, shows the status or says why there is none."""
    answers = {"refused": httpx.Response(503), "no JSON": httpx.Response(200, text="<html>"), "no object": ok([])}
    api.trouble = [answers[trouble]] if trouble in answers else []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with listening(api) as url, process("status", url=url if api.trouble else "http://127.0.0.1:1", **pipes) as command:
        out, err = (text.decode() for text in command.communicate(timeout=30))
    if trouble == "nobody":
        assert (command.returncode, out) == (1, "") and "cannot be reached" in err and "llmos up" in err
    else:
        assert (command.returncode, err, len(api.requests)) == (0, "", 2) and "coder-3" in out


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "http://192.0.2.1"])
def test_other_machines_and_certificates_are_left_to_the_client(url: str) -> None:
    assert glance.asked(Connection(url, KEY)) is None
