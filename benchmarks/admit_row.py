"""``admit_per_s``: jobs per second through the control module: submitted, planned, started, run and ended.

The store is the one of a real cluster: every submission and every tick is in SQLite's log on the disk before it is
acknowledged. Only the cluster exists as numbers: a job begins a tick after its start and has ended a tick later.
Threads submit, as those of the HTTP API do, while the control loop ticks.
"""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.rows import Measured, Options
from llmos.control.loop import Loop
from llmos.control.registry import Registry
from llmos.control.store import Store
from llmos.core.types import JobPhase, Node, Resources
from llmos.layout import Layout
from llmos.sim.cluster import Outcome, SimCluster
from llmos.spec import TrainFunction, digest, parse

JOBS, QUICK_JOBS = 10_000, 1_000
NODES, PER_NODE = 250, 8
"""Machines, and jobs that run at once on each."""
THREADS = 16
SYNCS = 50


def admit_per_s(options: Options) -> Measured:
    """Jobs per second, from the first submission to the last end."""
    jobs = QUICK_JOBS if options.quick else JOBS
    with tempfile.TemporaryDirectory() as root:
        sync_ms = _sync_ms(Path(root))
        world = _World(Path(root) / "state")
        began = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as pool:
            took = pool.map(world.submit, range(jobs))
            ticks = world.run(jobs)
            submitted_ms = sorted(1000 * seconds for seconds in took)
        wall_s = time.perf_counter() - began
        world.check(jobs)
        world.store.close()
    p50, p99 = submitted_ms[jobs // 2], submitted_ms[jobs * 99 // 100]
    also = {"submit_p50_ms": p50, "submit_p99_ms": p99, "ticks": ticks, "fsync_ms": sync_ms}
    why = f"{jobs} jobs, {THREADS} submit at a time, {NODES * PER_NODE} run; an fsync takes {sync_ms:.2f} ms"
    return Measured(jobs / wall_s, why=why, also=also)


class _World:
    """A state directory at ``root``, and the control loop on a cluster of numbers."""

    def __init__(self, root: Path) -> None:
        layout = Layout(root)
        nodes = [Node(f"node-{i}", Resources(cpus=PER_NODE)) for i in range(NODES)]
        self.cluster = SimCluster(nodes, lambda job, attempt: Outcome(1.0), launch_s=1.0)
        self.store = Store(layout)
        registry = Registry(layout, self.store, lambda: self.cluster.now)
        self._loop = Loop(self.store, registry, self.cluster, layout)

    def submit(self, number: int) -> float:
        """Submit a job, and say how many seconds it took until that was acknowledged."""
        asked = {"kind": "TrainFunction", "name": f"job-{number}", "function": {"call": "loop:main"}, "steps": 1}
        began = time.perf_counter()
        spec = parse(asked | {"resources": {"cpus": 1}})
        assert isinstance(spec, TrainFunction)
        self.store.jobs.submit(spec, digest(spec), f"key-{number}", self.cluster.now)
        return time.perf_counter() - began

    def run(self, jobs: int) -> int:
        """Tick until ``jobs`` have ended, and say how many times that was."""
        ticks = 0
        while self.store.jobs.counts()[JobPhase.SUCCEEDED] < jobs:
            self._loop.tick()
            self.cluster.advance(self.cluster.now + 1.0)
            ticks += 1
        return ticks

    def check(self, jobs: int) -> None:
        """Every job has run once. AssertionError if not."""
        rows = self.store.jobs.all()
        assert len(rows) == jobs and all(row["attempts"] == 1 for row in rows), "a job ran twice, or never"


def _sync_ms(directory: Path) -> float:
    """Milliseconds of an fsync on this disk, the median."""
    times = []
    with (directory / "probe").open("wb") as file:
        for _ in range(SYNCS):
            file.write(b"x" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append(1000 * (time.perf_counter() - began))
    return sorted(times)[SYNCS // 2]
