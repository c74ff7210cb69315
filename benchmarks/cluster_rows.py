"""The rows that need a cluster, of :mod:`benchmarks.fault_rows`: each in a process of its own, which starts one and
changes its environment to do so."""

from __future__ import annotations

import json
import os
import sys

from benchmarks.contenders import run
from benchmarks.rows import ROOT, Measured, Options

PAIRS, QUICK_PAIRS = 5, 1
TIMEOUT_S = 3600.0


def orchestration_pct(options: Options) -> Measured:
    """What steps under the control module and Ray Train cost more than those under torchrun."""
    return _printed("orchestration_pct", options)


def submit_to_step_s(options: Options) -> Measured:
    """From submitting a job to its first step."""
    return _printed("submit_to_step_s", options)


def kill_to_step(options: Options) -> Measured:
    """From SIGKILL of a worker to the next step."""
    return _printed("kill_to_step", options)


def resize_to_step(options: Options) -> Measured:
    """From the last step on some workers to the first one on more."""
    return _printed("resize_to_step", options)


def node_loss_to_step(options: Options) -> Measured:
    """From SIGKILL of a node to the next step."""
    return _printed("node_loss_to_step", options)


def _printed(name: str, options: Options) -> Measured:
    """The row that ``python -m benchmarks.fault_rows`` prints."""
    pairs = str(QUICK_PAIRS if options.quick else PAIRS)
    command = [sys.executable, "-m", "benchmarks.fault_rows", name, "--pairs", pairs]
    return Measured(**json.loads(run(command, dict(os.environ), ROOT, TIMEOUT_S).splitlines()[-1]))
