"""`llmos status`: one screen, at once."""

from __future__ import annotations

import copy
import subprocess
import sys
import time
from typing import Any

from tests.unit.cli.conftest import Run
from tests.unit.cli.test_app import process
from tests.unit.fake_api import NODE, STATUS, FakeApi, listening

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


def test_the_status_is_there_in_300_ms_and_loads_little(api: FakeApi) -> None:
    code = (
        "import sys; sys.argv = ['llmos', 'status']\n"
        "from llmos.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    with listening(api) as url:
        taken_s = []
        for _ in range(5):
            begun = time.perf_counter()
            with process("status", url=url, stdout=subprocess.PIPE) as command:
                assert b"coder-3" in command.communicate(timeout=30)[0]
            taken_s.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import asyncio, json"], check=True, timeout=60)
        bare_s = time.perf_counter() - begun
        with process("status", url=url, main=code, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
            loaded = command.communicate(timeout=30)[1].decode().split()
    print(f"llmos status: {min(taken_s) * 1e3:.0f} ms, of which Python alone {bare_s * 1e3:.0f} ms")
    heavy = {"ray", "torch", "numpy", "pydantic", "openai", "yaml", "rich", "pygments", "fastapi", "sqlalchemy"}
    assert not {name.partition(".")[0] for name in loaded} & heavy
    assert min(taken_s) < max(0.3, 6 * bare_s)  # the second on machines that are slow, or busy
