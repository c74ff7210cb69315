"""Compiles the native step with the system's C++ compiler, once for each source, compiler and kind of processor.

The result is a plain shared object for ctypes: it knows neither Python nor torch, compiles in a tenth of the time of an
extension that includes torch's headers, and goes on working when torch is upgraded.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from llmos.errors import EngineError

log = logging.getLogger("llmos.infer")

SOURCE = Path(__file__).parent / "native.cpp"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")
TIMEOUT_S = 600.0


def build(compiler: str | None = None, cache_dir: Path | None = None) -> Path:
    """The compiled step for this machine; compiled now unless it has been before, or another process does so.

    ``compiler`` defaults to ``$CXX``, then g++, c++ or clang++. Raises EngineError, which says why, if it cannot be.
    """
    compiler = compiler or find_compiler()
    directory = cache_dir or default_cache_dir()
    try:
        return _built(compiler, _private(directory))
    except OSError as error:  # a disk that is full, or may not be written to
        raise EngineError(f"the native step cannot be kept in {directory}: {error}", hint=_ELSEWHERE) from error


def _built(compiler: str, directory: Path) -> Path:
    target = directory / f"step-{_key(compiler)}.so"
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the second of two processes finds what the first has built
        if not target.exists():
            _compile(compiler, target)
    return target


def available() -> bool:
    """Whether the step is compiled for this machine already: then :func:`build` takes no time."""
    try:
        return (default_cache_dir() / f"step-{_key(find_compiler())}.so").exists()
    except (EngineError, OSError):  # no compiler, or a directory that may not be looked into
        return False


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/llmos/native``, by default under ``~/.cache``: of this user, and never shared by machines.

    Raises EngineError for a user without a home, such as a container's.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmos" / "native"
    except RuntimeError as error:
        raise EngineError(f"the native step cannot be kept: {error}", hint=_ELSEWHERE) from error


def find_compiler() -> str:
    """``$CXX``, or the first that is there. Raises EngineError if none is."""
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and shutil.which(name):
            return name
    hint = "Install g++ (on Debian and Ubuntu: apt install g++), or say where it is in CXX."
    raise EngineError("the native step needs a C++ compiler: neither $CXX, g++, c++ nor clang++ is there", hint=hint)


@cache
def _key(compiler: str) -> str:
    """Names what is compiled, with what, and the instructions that it may use."""
    found = hashlib.sha256(repr(FLAGS).encode())
    for path in [*sorted(SOURCE.parent.glob("*.h")), SOURCE]:
        found.update(path.read_bytes())
    found.update(subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout)
    found.update(_processor().encode())
    return found.hexdigest()[:20]


def _processor() -> str:
    """What ``-march=native`` looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.machine() + platform.processor()
    wanted = ("vendor_id", "cpu family", "model\t", "flags", "CPU implementer", "CPU part", "Features")
    return platform.machine() + "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


def _private(directory: Path) -> Path:
    """``directory``, made if it is not there. Code is loaded from it, so nobody else may be able to write to it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        what = f"the native step is not loaded from {directory}, which others can write to"
        raise EngineError(what, hint=f"Run `chmod 700 {directory}` as its owner. Or: {_ELSEWHERE}")
    return directory


_ELSEWHERE = "Set XDG_CACHE_HOME to a directory of your own with some free megabytes."


def _compile(compiler: str, target: Path) -> None:
    """Atomic: ``target`` is there whole or not at all."""
    log.info("compiling the native step with %s; later starts find it in %s", compiler, target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        try:
            done = subprocess.run(
                [compiler, *FLAGS, str(SOURCE), "-o", str(made)], capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            hint = f"Try `{compiler} --version`, or name another compiler in CXX."
            raise EngineError(f"the native step could not be compiled: {error}", hint=hint) from error
        if done.returncode:
            what = f"{compiler} could not compile the native step: {_first_error(done.stderr)}"
            raise EngineError(what, hint="Expected a C++17 compiler with OpenMP: g++ 9 or clang++ 14, or later.")
        os.replace(made, target)


def _first_error(output: str) -> str:
    lines = output.strip().splitlines() or ["it said nothing"]
    return next((line for line in lines if "error" in line), lines[-1])[:500]
