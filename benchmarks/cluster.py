"""A cluster for the rows that need one, what they do to it, and the jobs they run."""

from __future__ import annotations

import json
import os
import signal
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
from llmos.control.standbys import QUIET_S
from llmos.settings import connection
from llmos.spec import CheckpointPolicy
from llmos.standby import SETUP_HOOK

Step = dict[str, Any]
Steps = Callable[[], list[Step]]

ROOT = Path(__file__).parents[1]
LLMOS = str(Path(sys.executable).with_name("llmos"))
WAIT_S = 150.0
SETTLE_S = 3.0
END_TIMEOUT_S = 30.0


class Bench:
    """A cluster that ``llmos up`` started under ``home``, and what the rows do to it."""

    def __init__(self, home: Path, client: llmos.Client) -> None:
        self.home, self.client, self.state = home, client, home / "state"
        self._number, self._submitted_at = 0, 0.0

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
        job = self.client.submit(nano(name, **fields)).id
        self._submitted_at = time.time()
        return job, lambda: steps_of(sorted((self.state / "jobs" / job / "attempts").glob("*/metrics.jsonl")))

    def end(self, job: str) -> None:
        """Cancel a job and wait until it is gone."""
        self.client.cancel(job)
        self.client.wait(job, timeout_s=WAIT_S)
        settle()

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
            yield lambda: steps_of([directory / "steps.jsonl"])
        finally:
            process.send_signal(signal.SIGINT)  # killed, what it asked for would stay taken a while
            try:
                process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            settle()

    def workers(self) -> list[psutil.Process]:
        """The processes of Ray Train's workers, the youngest last."""
        return self._processes("RayTrainWorker")

    def rest(self) -> None:
        """Wait until what stands by is there and has loaded what it has to: what is measured next pays for none."""
        time.sleep(max(0.0, self._submitted_at + QUIET_S + SETTLE_S - time.time()))
        until(self._calm)

    def _calm(self) -> bool:
        """Whether none of the processes that stand by loads anything: that takes most of a core, and waiting 1 %."""
        found = [each for each in self._processes("ray::IDLE") if SETUP_HOOK in each.environ()]
        before = sum(sum(each.cpu_times()[:2]) for each in found)
        time.sleep(SETTLE_S)
        return bool(found) and sum(sum(each.cpu_times()[:2]) for each in found) - before < SETTLE_S / 6

    def _processes(self, kind: str) -> list[psutil.Process]:
        """Those of the cluster that Ray has given this name, the youngest last."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HOME") == str(self.home) and kind in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.AccessDenied, psutil.NoSuchProcess):
                continue
        return sorted(found, key=lambda process: process.create_time())

    @contextmanager
    def node(self) -> Iterator[Callable[[], None]]:
        """One more node, with 1 CPU; yields how to kill it."""
        before = len(self.client.status()["nodes"])
        temporary = tempfile.TemporaryDirectory(prefix="n", dir="/tmp", ignore_cleanup_errors=True)
        command = [sys.executable, "-m", "llmos.control.ray.local_node", self.address, temporary.name, '{"CPU": 1}']
        with (Path(temporary.name) / "log").open("wb") as log:
            process = psutil.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=ROOT)

        def kill() -> None:
            for member in [*process.children(recursive=True), process]:
                member.send_signal(signal.SIGKILL)

        try:
            until(lambda: len(self.client.status()["nodes"]) > before)
            yield kill
        finally:
            if process.is_running():
                kill()
            process.wait()
            temporary.cleanup()
            until(lambda: len(self.client.status()["nodes"]) == before)


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


def nano(name: str, steps: int, **fields: Any) -> llmos.TrainJob:
    """A job of the smallest preset on two ranks, with ``fields`` instead."""
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


def steps_of(files: list[Path]) -> list[Step]:
    """The steps that are in ``files``, in the order of time; with the directory of each file as ``workers``."""
    rows = []
    for file in filter(Path.exists, files):
        whole = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        # of ours, each attempt has one size
        rows += [{"workers": file.parent.name, **json.loads(line)} for line in whole]
    return sorted(rows, key=lambda row: row["time_s"])


def settle() -> None:
    """Let what has just started or ended come to rest."""
    time.sleep(SETTLE_S)


def until(what: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    """Wait for ``what``. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing happened within {timeout_s:.0f} s")
        time.sleep(0.1)
