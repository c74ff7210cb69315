"""The environment of the worker processes of Ray in which attempts and ranks run.

It has them load torch before it is known what for (``control/ray/standby.py``). That takes seconds, most of the time
between ``llmos train`` and the first step. Ray gives a process that stands by to the first actor whose environment is
the same to the letter: so what stands by and what is started must both have theirs from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

SETUP_HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
"""Where Ray looks for the function that a worker process calls before anything else (``worker_process_setup_hook``)."""
STATE_DIR = "LLMOS_STANDBY_OF"
"""Whose the process is: the state directory of an llmos."""
KEPT_S = 1800
"""How long a process stands by before it ends, and is replaced."""

RAY_TRAIN: Mapping[str, str] = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1.0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
}
"""How Ray Train runs in the process of an attempt, which hands it on to its workers. It looks after them once a second,
and is as late to notice that they are done: its default is 2 s. That it blocks is as it would be in its own process."""

NOTHING: Mapping[str, str] = {SETUP_HOOK: ""}
"""The environment of what a rank starts that need not load torch: it would be inherited."""


def attempt(state_dir: Path) -> dict[str, str]:
    """The environment of an attempt's process."""
    return {SETUP_HOOK: "llmos.control.ray.standby.attempt", STATE_DIR: str(state_dir)}


def rank(state_dir: Path) -> dict[str, str]:
    """The environment of a rank's process, but for what its job adds."""
    return {**RAY_TRAIN, SETUP_HOOK: "llmos.control.ray.standby.rank", STATE_DIR: str(state_dir)}
