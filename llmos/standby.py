"""What a worker process of Ray loads before it is known what for.

Loading torch takes seconds, most of the time between `llmos train` and the first step. A process that has loaded it
already is given to the first actor whose environment is the same: so what stands by and what is started must have
theirs from here. Which processes stand by, and where, is decided in ``control/standbys.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import import_module

SETUP_HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
"""Where Ray looks for the function that a worker process calls before anything else (``worker_process_setup_hook``)."""

RAY_TRAIN: Mapping[str, str] = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1.0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
}
"""How Ray Train runs in the process of an attempt, which hands it on to its workers. It looks after them once a second,
and is as late to notice that they are done: its default is 2 s. That it blocks is as it would be in its own process."""

ATTEMPT: Mapping[str, str] = {SETUP_HOOK: "llmos.standby.load_attempt"}
"""The environment of an attempt's process."""
RANK: Mapping[str, str] = {**RAY_TRAIN, SETUP_HOOK: "llmos.standby.load_rank"}
"""The environment of a rank's process, but for what its job adds."""
NOTHING: Mapping[str, str] = {SETUP_HOOK: ""}
"""The environment of what a rank starts that needs none of this: it would be inherited."""

log = logging.getLogger("llmos.standby")


def load_attempt() -> None:
    """Load what the process of an attempt needs."""
    _load("llmos.train.worker")


def load_rank() -> None:
    """Load what a rank needs. Nothing of it may look for GPUs: which ones it has is not known yet."""
    _load("llmos.train.gang", "llmos.train.rank")


def _load(*modules: str) -> None:
    """Load ``modules``. An error is only logged: who needs them meets it again, and can tell whose job it ends."""
    try:
        for name in modules:
            import_module(name)
    except Exception:
        log.exception("could not be loaded beforehand")
