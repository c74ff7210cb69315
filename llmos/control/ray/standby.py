"""What a worker process of Ray does before it is known what for: it loads torch, and stands by until an actor takes it.

It ends by itself when nobody has for a while, when its llmos is down, and when the code that it has loaded was
replaced. Ray would keep it as long as there are cores for it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import ray

from llmos.layout import Layout
from llmos.standby import KEPT_S, STATE_DIR

LOOK_EVERY_S = 15.0
THREADS = "OMP_NUM_THREADS"

log = logging.getLogger("llmos.standby")


def attempt() -> None:
    """Be ready to run an attempt. Ray calls this when the process starts (``llmos.standby.attempt``)."""
    _stand_by("llmos.train.worker")


def rank() -> None:
    """Be ready to be a rank. What is loaded must not look for GPUs: which ones it has is not known yet."""
    _stand_by("llmos.train.gang", "llmos.train.rank")


def _stand_by(*modules: str) -> None:
    began = time.time()
    _load(modules)
    threading.Thread(target=_watch, args=(Layout(Path(os.environ[STATE_DIR])), began), daemon=True).start()


def _load(modules: Iterable[str]) -> None:
    """Load ``modules``. An error is only logged: who needs them meets it again, and can tell whose job it ends.

    With one thread: Ray says how many a process may have only once it is taken, and not all libraries ask again.
    """
    alone = os.environ.setdefault(THREADS, "1") if THREADS not in os.environ else None
    try:
        for name in modules:
            import_module(name)
    except Exception:
        log.exception("could not be loaded beforehand")
    finally:
        if alone:
            del os.environ[THREADS]


def _watch(layout: Layout, began: float) -> None:
    while not _taken():
        if useless(layout, began, time.time()):
            os._exit(0)  # not sys.exit: the main thread waits for Ray for ever
        time.sleep(LOOK_EVERY_S)


def _taken() -> bool:
    """Whether the process works for a job: Ray gives it one together with its actor."""
    return not ray._private.worker.global_worker.current_job_id.is_nil()


def useless(layout: Layout, began: float, now: float) -> bool:
    """Whether a process that stands by since ``began`` should go: its time is over, llmos is down, its code is old."""
    return now - began > KEPT_S or not layout.cluster.exists() or _newest_code() > began


def _newest_code() -> float:
    """When the files of llmos that this process has loaded were last changed, seconds since the epoch."""
    files = [module.__file__ for name, module in list(sys.modules.items()) if name.partition(".")[0] == "llmos"]
    return max(os.stat(file).st_mtime for file in files if file and os.path.exists(file))
