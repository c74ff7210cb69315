"""``submit_to_step_s``, ``orchestration_pct``, ``kill_to_step``, ``resize_to_step``, ``node_loss_to_step``.

    python -m benchmarks.fault_rows [NAME …]     prints one JSON row each; starts a cluster of its own

*submit_to_step_s*: from ``submit`` to the end of the first optimizer step, two workers, a cluster that has run a job.
*orchestration_pct*: by how much steps under the control module and Ray Train take longer than those of ranks that were
started by hand, same job, pairs by turns.
The others: how long there is no step, on the same cluster by turns with bare Ray Train (``ray_train_peer.py``). After
SIGKILL of a worker; while the job goes from one worker to two; after SIGKILL of a node that held one of three.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

import llmos
from llmos.control.ray.processes import free_ports
from llmos.settings import connection
from llmos.spec import CheckpointPolicy, Workers
from llmos.spec.train_job import Validation

Row = dict[str, Any]
Steps = Callable[[], list[Row]]

ROOT = Path(__file__).parents[1]
LLMOS = str(Path(sys.executable).with_name("llmos"))
PAIRS = 5
WAIT_S = 150.0
GAP_S = 0.7
"""Steps of these jobs take milliseconds: this long without one means that something was lost or moved."""
SETTLE_S = 3.0


class Bench:
    """A cluster that ``llmos up`` started under ``home``, and what the rows do to it."""

    def __init__(self, home: Path, client: llmos.Client) -> None:
        self.home, self.client, self.state = home, client, home / "state"
        self._number = 0

    @property
    def address(self) -> str:
        """Of the Ray head."""
        return str(json.loads((self.state / "cluster.json").read_text())["address"])

    def directory(self) -> Path:
        """A new one."""
        self._number += 1
        path = self.home / f"peer-{self._number}"
        path.mkdir()
        return path

    def submit(self, name: str, **fields: Any) -> tuple[str, Steps]:
        """Submit a job of the smallest preset; its id, and its steps so far, in the order of time."""
        job = self.client.submit(_nano(name, **fields)).id
        return job, lambda: _rows(sorted((self.state / "jobs" / job / "attempts").glob("*/metrics.jsonl")))

    def end(self, job: str) -> None:
        """Cancel a job and wait until it is gone."""
        self.client.cancel(job)
        self.client.wait(job, timeout_s=WAIT_S)
        time.sleep(SETTLE_S)

    @contextmanager
    def peer(self, fewest: int, most: int) -> Iterator[Steps]:
        """Bare Ray Train on the same cluster; yields its steps so far."""
        directory = self.directory()
        command = [sys.executable, "-m", "benchmarks.ray_train_peer", str(directory), str(fewest), str(most)]
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                command, env={**os.environ, "RAY_ADDRESS": self.address}, cwd=ROOT, stdout=log, stderr=log
            )
        try:
            yield lambda: _rows([directory / "steps.jsonl"])
        finally:
            process.kill()
            process.wait()
            time.sleep(SETTLE_S)

    def workers(self) -> list[psutil.Process]:
        """The processes of Ray Train's workers, the youngest last."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HOME") == str(self.home) and "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.AccessDenied, psutil.NoSuchProcess):
                continue
        return sorted(found, key=lambda process: process.create_time())

    @contextmanager
    def node(self) -> Iterator[Callable[[], None]]:
        """One more node, with 1 CPU; yields how to kill it."""
        before = len(self.client.status()["nodes"])
        temporary = tempfile.TemporaryDirectory(prefix="n", dir="/tmp", ignore_cleanup_errors=True)
        command = [sys.executable, "-m", "benchmarks.loopback_node", self.address, temporary.name, "1"]
        with (Path(temporary.name) / "log").open("wb") as log:
            process = psutil.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=ROOT)

        def kill() -> None:
            for member in [*process.children(recursive=True), process]:
                member.send_signal(signal.SIGKILL)

        try:
            _until(lambda: len(self.client.status()["nodes"]) > before)
            yield kill
        finally:
            if process.is_running():
                kill()
            process.wait()
            temporary.cleanup()
            _until(lambda: len(self.client.status()["nodes"]) == before)


@contextmanager
def bench() -> Iterator[Bench]:
    """A warm cluster: it has run a job of two workers."""
    with ExitStack() as stack:
        home = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="llmos-faults-", ignore_cleanup_errors=True))
        )
        os.environ.update(HOME=str(home), LLMOS_STATE_DIR=str(home / "state"), OMP_NUM_THREADS="1")
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(home / "state" / "ray_token"))
        os.environ.setdefault("PYTHONPATH", str(ROOT))
        subprocess.run([LLMOS, "up", "--port", str(free_ports(1)[0])], check=True, stdout=subprocess.DEVNULL)
        stack.callback(subprocess.run, [LLMOS, "down"], check=True, stdout=subprocess.DEVNULL)
        client = stack.enter_context(llmos.Client.of(connection()))
        one = Bench(home, client)
        job, _ = one.submit("warm", steps=5)
        client.wait(job, timeout_s=WAIT_S)
        yield one


def submit_to_step_s(one: Bench, pairs: int = PAIRS) -> Row:
    """Seconds from ``submit`` to the end of the first step."""
    found = []
    for _ in range(pairs):
        began = time.time()
        job, steps = one.submit("submitted", steps=5)
        _until(steps)
        found.append(steps()[0]["time_s"] - began)
        one.client.wait(job, timeout_s=WAIT_S)
    value = statistics.median(found)
    why = f"median of {pairs}, from {min(found):.1f} to {max(found):.1f}; 2 workers on {os.cpu_count()} cores"
    return _row("submit_to_step_s", value, "s", "limit", 20.0, value, 20.0, why)


def orchestration_pct(one: Bench, pairs: int = PAIRS) -> Row:
    """What steps under the control module and Ray Train cost more than under ranks started by hand, in percent."""
    found = []
    for number in range(pairs):
        ours, theirs = _orchestrated(one), _by_hand(one, number)
        found.append((100 * (ours / theirs - 1), ours, theirs))
    value, ours, theirs = (statistics.median(column) for column in zip(*found, strict=True))
    low, high = min(each for each, _, _ in found), max(each for each, _, _ in found)
    why = f"median of {pairs} pairs, from {low:.1f} to {high:.1f} %; a step {ours * 1e3:.1f} and {theirs * 1e3:.1f} ms"
    return _row("orchestration_pct", value, "%", "ranks by hand", 0.0, value, 3.0, why)


def kill_to_step(one: Bench, pairs: int = PAIRS) -> Row:
    """From SIGKILL of one of two workers to the next step."""
    ours, theirs = [], []
    for _ in range(pairs):
        job, steps = one.submit("killed", steps=10**6)
        ours.append(_after(steps, lambda: one.workers()[-1].kill()))
        one.end(job)
        with one.peer(2, 2) as steps:
            theirs.append(_after(steps, lambda: one.workers()[-1].kill()))
    return _compared("kill_to_step", ours, theirs, "SIGKILL of one of 2 workers to the next step")


def resize_to_step(one: Bench, pairs: int = PAIRS) -> Row:
    """From the last step on one worker to the first one on two."""
    ours, theirs = [], []
    for _ in range(pairs):
        holder, steps = one.submit("holder", steps=10**6, mesh=llmos.Mesh(dp=1))
        _until(steps)
        job, steps = one.submit("grown", steps=10**6, workers=Workers(min=1, max=2, grow_every=5.0))
        _until(lambda steps=steps: len(steps()) > 50)
        ours.append(_gap(steps, lambda holder=holder: one.end(holder)))
        one.end(job)
        holder, steps = one.submit("holder", steps=10**6, mesh=llmos.Mesh(dp=1))
        _until(steps)
        with one.peer(1, 2) as steps:
            _until(lambda steps=steps: len(steps()) > 50)
            theirs.append(_gap(steps, lambda holder=holder: one.end(holder)))
    return _compared("resize_to_step", ours, theirs, "the last step on 1 worker to the first on 2")


def node_loss_to_step(one: Bench, pairs: int = PAIRS) -> Row:
    """From SIGKILL of a node with one of three workers to the next step, on the two that are left."""
    ours, theirs = [], []
    for _ in range(pairs):
        with one.node() as kill:
            job, steps = one.submit(
                "orphaned", steps=10**6, batch_size=6, workers=Workers(min=2, max=3, grow_every=5.0)
            )
            ours.append(_after(steps, kill))
        one.end(job)
        with one.node() as kill, one.peer(2, 3) as steps:
            theirs.append(_after(steps, kill))
    return _compared("node_loss_to_step", ours, theirs, "SIGKILL of a node with 1 of 3 workers to the next step on 2")


ROWS = (submit_to_step_s, orchestration_pct, kill_to_step, resize_to_step, node_loss_to_step)


def _nano(name: str, steps: int, **fields: Any) -> llmos.TrainJob:
    defaults = {
        "model": llmos.ModelSource(preset="nano"),
        "data": llmos.Data(path=(str(ROOT / "llmos" / "core" / "*.py"),), vocab_size=320),
        "mesh": "auto" if "workers" in fields else llmos.Mesh(dp=2),
        "batch_size": 4,
        "sequence_length": 64,
        "checkpoint": CheckpointPolicy(every_steps=50),
        "output": llmos.Output(model=name),
    }
    return llmos.TrainJob(name=name, steps=steps, **{**defaults, **fields})


def _rows(files: list[Path]) -> list[Row]:
    rows = []
    for file in filter(Path.exists, files):
        whole = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        # of ours, each attempt has one size
        rows += [{"workers": file.parent.name, **json.loads(line)} for line in whole]
    return sorted(rows, key=lambda row: row["time_s"])


def _after(steps: Steps, strike: Callable[[], object]) -> float:
    """Seconds from ``strike``, in the middle of a run, to the first step that follows the gap it makes."""
    _until(lambda: len(steps()) > 120)
    time.sleep(SETTLE_S)
    struck_at = time.time()
    strike()
    return _resumed(steps, struck_at) - struck_at


def _gap(steps: Steps, allow: Callable[[], object]) -> float:
    """Seconds between the last step before and the first one after the job's size changes, which ``allow`` lets it."""
    time.sleep(SETTLE_S)
    size = steps()[-1]["workers"]
    allow()
    _until(lambda: steps()[-1]["workers"] != size)
    last = max(row["time_s"] for row in steps() if row["workers"] == size)
    return float(min(row["time_s"] for row in steps() if row["workers"] != size) - last)


def _resumed(steps: Steps, since: float) -> float:
    """When the first step after the first gap since then ended."""
    found: list[float] = []

    def look() -> bool:
        times = [since, *(row["time_s"] for row in steps() if row["time_s"] > since)]
        found[:] = [b for a, b in itertools.pairwise(times) if b - a > GAP_S]
        return bool(found)

    _until(look)
    return found[0]


def _orchestrated(one: Bench) -> float:
    job, steps = one.submit("orchestrated", **_STEADY)
    one.client.wait(job, timeout_s=WAIT_S)
    return _step_s(steps())


def _by_hand(one: Bench, number: int) -> float:
    state = one.home / f"by-hand-{number}"
    spec = one.home / "by-hand.yaml"
    spec.write_text(json.dumps(_nano("by-hand", **_STEADY).model_dump(mode="json", exclude_defaults=True)))
    command = [sys.executable, "-m", "llmos.train", str(spec), "--state-dir", str(state)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return _step_s(_rows(sorted(state.glob("jobs/*/attempts/*/metrics.jsonl"))))


_STEADY: dict[str, Any] = {
    "steps": 150,
    "model": llmos.ModelSource(preset="tiny"),
    "sequence_length": 128,
    "checkpoint": CheckpointPolicy(every_steps=1000),
    "validation": Validation(every_steps=1000),
}


def _step_s(rows: list[Row]) -> float:
    """Seconds of a step, without the first tenth of them."""
    steady = rows[len(rows) // 10 : -1]
    return float((steady[-1]["time_s"] - steady[0]["time_s"]) / (len(steady) - 1))


def _compared(name: str, ours: list[float], theirs: list[float], what: str) -> Row:
    mine, peer = statistics.median(ours), statistics.median(theirs)
    shown = ", ".join(f"{a:.1f}/{b:.1f}" for a, b in zip(ours, theirs, strict=True))
    why = f"{what}; pairs {shown}; {os.cpu_count()} cores"
    return _row(name, mine, "s", "Ray Train alone", peer, mine / peer, 1.0, why)


def _row(
    name: str, value: float, unit: str, peer: str, peer_value: float, ratio: float, target: float, why: str
) -> Row:
    return {
        "name": name,
        "value": round(value, 3),
        "unit": unit,
        "peer": peer,
        "peer_value": round(peer_value, 3),
        "ratio": round(ratio, 3),
        "target": target,
        "met": ratio <= target,
        "why": why,
    }


def _until(what: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing happened within {timeout_s:.0f} s")
        time.sleep(0.1)


def main() -> None:
    """Print the rows that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fault_rows")
    parser.add_argument("rows", nargs="*", metavar="NAME", help=", ".join(measure.__name__ for measure in ROWS))
    parser.add_argument("--pairs", type=int, default=PAIRS)
    options = parser.parse_args()
    with bench() as one:
        for measure in ROWS:
            if measure.__name__ in options.rows or not options.rows:
                print(json.dumps(measure(one, options.pairs)), flush=True)


if __name__ == "__main__":
    main()
