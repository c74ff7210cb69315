"""``llmos doctor``: whether this machine has what llmos needs, one line a matter, with what to do."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import httpx
import psutil
from packaging.requirements import Requirement

from llmos.control.machine import memory_bytes
from llmos.cores import usable_cores
from llmos.errors import UsageError
from llmos.files import read_json
from llmos.layout import Layout

if TYPE_CHECKING:
    from llmos.parallel.network import Network

GIB = 2**30
PACKAGES = ("torch", "ray")
PYTHONS = ((3, 11), (3, 12))
PORT = 8000
MEASURE = "llmos.train.measure_network:measure"
MEMORY_BYTES, DISK_BYTES, SHM_BYTES = (GIB, 4 * GIB), (GIB, 10 * GIB), 2 * GIB
"""Less than the first is too little for anything; less than the second for more than small models."""
SHM = Path("/dev/shm")  # noqa: S108 - looked at, not written
OPEN_FILES = 4096
SKEW_S = 2.0
OLDEST_S = 1_700_000_000
"""November 2023: no clock that is right says less."""

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about ``name``, and what to do unless it is ok."""

    name: str
    status: Status
    found: str
    advice: str = ""


def examine(layout: Layout) -> Iterator[Finding]:
    """Look at everything, one after the other; nothing is changed."""
    yield _python()
    yield from map(_package, PACKAGES)
    yield _cpus()
    yield _gpus()
    yield _memory()
    yield _space("disk", _existing(layout.root), *DISK_BYTES, "Free some, or move the state with LLMOS_STATE_DIR.")
    yield _space("shared memory", SHM, 0, SHM_BYTES, "In a container: `--shm-size 8g`. Ray is slower.")
    yield _open_files()
    yield _state(layout.root)
    yield _clock(_existing(layout.root))
    yield _front_door(layout)


def _python() -> Finding:
    found = "{}.{}.{}".format(*sys.version_info)
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[-1]:
        return Finding("python", "ok", found)
    return Finding("python", "fail", found, "Use Python 3.11 or 3.12.")


def _package(name: str) -> Finding:
    wanted = next((Requirement(text) for text in requires("llmos") or () if Requirement(text).name == name), None)
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(name, "fail", "not installed", f"pip install '{wanted or name}'")
    if wanted and not wanted.specifier.contains(found, prereleases=True):
        return Finding(name, "fail", f"{found}, expected {wanted.specifier}", f"pip install '{wanted}'")
    return Finding(name, "ok", found)


def _cpus() -> Finding:
    usable, load = len(usable_cores()), os.getloadavg()[0]
    found = f"{usable} cores, load {load:.1f}"
    if load > usable:
        return Finding("cpus", "warn", found, "Others compute here: what is measured now will not last.")
    return Finding("cpus", "ok", found)


def _gpus() -> Finding:
    from llmos.parallel.gpus import gpus  # loads torch

    found = gpus()
    if found:
        return Finding("gpus", "ok", ", ".join(f"{name} ({size / 1e9:.0f} GB)" for name, size in found))
    if Path("/dev/nvidiactl").exists():
        return Finding("gpus", "fail", "there are some, torch sees none", "Install a build of torch for this driver.")
    return Finding("gpus", "ok", "none: CPUs compute")


def _memory() -> Finding:
    total, free = memory_bytes(), psutil.virtual_memory().available
    found = f"{min(free, total) / GIB:.1f} of {total / GIB:.1f} GiB free"
    return _enough("memory", found, min(free, total), *MEMORY_BYTES, "End what else runs here.")


def _space(name: str, path: Path, least: int, enough: int, advice: str) -> Finding:
    if not path.is_dir():
        return Finding(name, "warn", f"there is no {path}", advice)
    free = shutil.disk_usage(path).free
    return _enough(name, f"{free / GIB:.1f} GiB free at {path}", free, least, enough, advice)


def _enough(name: str, found: str, amount: int, least: int, enough: int, advice: str) -> Finding:
    status: Status = "fail" if amount < least else "warn" if amount < enough else "ok"
    return Finding(name, status, found, "" if status == "ok" else advice)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= OPEN_FILES or soft == resource.RLIM_INFINITY:
        return Finding("open files", "ok", str(soft))
    return Finding("open files", "warn", f"{soft} at most", f"`ulimit -n {min(hard, 65536)}` before `llmos up`.")


def _state(root: Path) -> Finding:
    if not root.exists():
        parent = _existing(root)
        if os.access(parent, os.W_OK | os.X_OK):
            return Finding("state directory", "ok", f"{root}, made when it is needed")
        return Finding("state directory", "fail", f"{root}: {parent} cannot be written", "Set LLMOS_STATE_DIR.")
    about = root.stat()
    if about.st_uid != os.geteuid() or not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        advice = f"`chown -R $USER {root}`, or set LLMOS_STATE_DIR."
        return Finding("state directory", "fail", f"{root} belongs to another user", advice)
    if mode := stat.S_IMODE(about.st_mode) & 0o077:
        return Finding("state directory", "warn", f"{root} is open to others ({mode:03o})", f"`chmod 700 {root}`")
    return Finding("state directory", "ok", str(root))


def _clock(directory: Path) -> Finding:
    """Against the year it cannot be before, and against the file system's, which may be another machine's."""
    if time.time() < OLDEST_S:
        return Finding("clock", "fail", time.strftime("%Y-%m-%d %H:%M"), "Set it: leases and keys go by it.")
    place = directory if os.access(directory, os.W_OK) else None
    with tempfile.NamedTemporaryFile(dir=place) as file:
        skew_s = os.stat(file.name).st_mtime - time.time()
    if abs(skew_s) > SKEW_S:
        what = f"{abs(skew_s):.0f} s {'behind' if skew_s > 0 else 'before'} that of {directory}"
        return Finding("clock", "warn", what, "Synchronize the machines (NTP): stops and timeouts go by file times.")
    return Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S %Z"))


def _front_door(layout: Layout) -> Finding:
    """The cluster that was started from here answers, or its port is free."""
    running = read_json(layout.cluster)
    port = int(running["port"]) if running else PORT
    if running is None:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                found, advice = f"127.0.0.1:{port} is taken", "`llmos up --port N` uses another."
                return Finding("front door", "warn", found, advice)
        return Finding("front door", "ok", f"no cluster; 127.0.0.1:{port} is free")
    try:
        httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5, trust_env=False).raise_for_status()
    except httpx.HTTPError as error:
        found = f"127.0.0.1:{port} does not answer ({type(error).__name__})"
        return Finding("front door", "fail", found, "`llmos down`, then `llmos up`.")
    return Finding("front door", "ok", f"127.0.0.1:{port} answers")


def measure_cluster(ranks: int, gpus: int) -> Network:
    """How fast ``ranks`` workers of the running cluster sum, measured by a job of that many with ``gpus`` each.

    It waits its turn like any other, and Ray places it like any other. Raises TrainingError when it fails.
    """
    from llmos.client import connect
    from llmos.client_jobs import ended
    from llmos.parallel.network import of_numbers
    from llmos.spec import TrainFunction, parse

    job = {"kind": "TrainFunction", "name": "doctor-network", "function": {"call": MEASURE}, "steps": 1}
    job |= {"workers": {"min": ranks, "max": ranks}, "resources": {"gpus": gpus}, "retries": 0}
    spec = parse(job, source="doctor")
    assert isinstance(spec, TrainFunction)
    with connect() as cluster:
        return of_numbers(ended(cluster, cluster.submit(spec).id, lambda *_: None).metrics)


def _existing(path: Path) -> Path:
    """``path``, or the nearest directory above it that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


def ranks_here(asked: int | None, count: Callable[[], int]) -> int:
    """How many local ranks a measurement of the network has: ``asked``, else one for each GPU, at least two.

    Raises UsageError for fewer.
    """
    if asked is not None and asked < 2:
        raise UsageError(f"`--ranks {asked}`: expected at least 2, or there is nothing to send", param="--ranks")
    return asked or max(2, count())
