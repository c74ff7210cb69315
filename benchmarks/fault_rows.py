"""``submit_to_step_s``, ``orchestration_pct``, ``kill_to_step``, ``resize_to_step``, ``node_loss_to_step``.

    python -m benchmarks.fault_rows [NAME …]     prints one JSON row each; starts a cluster of its own

*submit_to_step_s*: from ``submit`` to the end of the first optimizer step, two workers, a cluster that has run a job;
beside it, from starting bare Ray Train (``ray_train_peer.py``) to its first. What stands by has been started before
each: nothing that is measured pays for it.
*orchestration_pct*: by how much steps under the control module and Ray Train take longer than those of ranks that
torchrun started, same job, pairs by turns.
The others: how long there is no step, on the same cluster by turns with bare Ray Train. After SIGKILL of a worker;
while the job goes from one worker to two; after SIGKILL of a node that held one of three.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

import llmos
from benchmarks.cluster import ROOT, WAIT_S, Bench, Step, Steps, bench, nano, settle, steps_of, until
from benchmarks.contenders import run
from benchmarks.rows import Measured
from llmos.spec import CheckpointPolicy, Workers
from llmos.spec.load import to_dict
from llmos.spec.train_job import Validation

PAIRS = 5
GAP_S = 0.7
"""Steps of these jobs take milliseconds: this long without one means that something was lost or moved."""


def submit_to_step_s(one: Bench, pairs: int = PAIRS) -> Measured:
    """Seconds from ``submit`` to the end of the first step."""
    ours, theirs = [], []
    for _ in range(pairs):
        one.rest()
        began = time.time()
        job, steps = one.submit("submitted", steps=5)
        until(steps)
        ours.append(steps()[0]["time_s"] - began)
        one.client.wait(job, timeout_s=WAIT_S)
        one.rest()
        began = time.time()
        with one.peer(2, 2) as steps:
            until(steps)
            theirs.append(steps()[0]["time_s"] - began)
    return _compared(ours, theirs, "submit to the first step of 2 workers, which had stood by")


def orchestration_pct(one: Bench, pairs: int = PAIRS) -> Measured:
    """What steps under the control module and Ray Train cost more than under torchrun, in percent."""
    found = []
    for number in range(pairs):
        ours, theirs = _orchestrated(one), _torchrun(one, number)
        found.append((100 * (ours / theirs - 1), ours, theirs))
    value, ours, theirs = (statistics.median(column) for column in zip(*found, strict=True))
    low, high = min(each for each, _, _ in found), max(each for each, _, _ in found)
    why = f"median of {pairs} pairs, from {low:.1f} to {high:.1f} %; a step {ours * 1e3:.1f} and {theirs * 1e3:.1f} ms"
    return Measured(value, why=why)


def kill_to_step(one: Bench, pairs: int = PAIRS) -> Measured:
    """From SIGKILL of one of two workers to the next step."""
    ours, theirs = [], []
    for _ in range(pairs):
        job, steps = one.submit("killed", steps=10**6)
        ours.append(_after(one, steps, lambda: one.workers()[-1].kill()))
        one.end(job)
        with one.peer(2, 2) as steps:
            theirs.append(_after(one, steps, lambda: one.workers()[-1].kill()))
    return _compared(ours, theirs, "SIGKILL of one of 2 workers to the next step")


def resize_to_step(one: Bench, pairs: int = PAIRS) -> Measured:
    """From the last step on one worker to the first one on two."""
    ours, theirs = [], []
    for _ in range(pairs):
        holder, steps = one.submit("holder", steps=10**6, mesh=llmos.Mesh(dp=1))
        until(steps)
        job, steps = one.submit("grown", steps=10**6, workers=Workers(min=1, max=2, grow_every=5.0))
        until(partial(_further, steps))
        one.rest()
        ours.append(_gap(steps, partial(one.end, holder)))
        one.end(job)
        with ExitStack() as other:  # what is not of Ray Train, its elastic workers do not see, and wait for its room
            until(other.enter_context(one.peer(1, 1)))
            with one.peer(1, 2) as steps:
                until(partial(_further, steps))
                one.rest()
                theirs.append(_gap(steps, other.close))
    return _compared(ours, theirs, "the last step on 1 worker to the first on 2")


def node_loss_to_step(one: Bench, pairs: int = PAIRS) -> Measured:
    """From SIGKILL of a node with one of three workers to the next step, on the two that are left."""
    ours, theirs = [], []
    for _ in range(pairs):
        with one.node() as kill:
            job, steps = one.submit(
                "orphaned", steps=10**6, batch_size=6, workers=Workers(min=2, max=3, grow_every=5.0)
            )
            ours.append(_after(one, steps, kill))
        one.end(job)
        with one.node() as kill, one.peer(2, 3) as steps:
            theirs.append(_after(one, steps, kill))
    return _compared(ours, theirs, "SIGKILL of a node with 1 of 3 workers to the next step on 2")


ROWS = (submit_to_step_s, orchestration_pct, kill_to_step, resize_to_step, node_loss_to_step)


def _further(steps: Steps) -> bool:
    return len(steps()) > 50


def _after(one: Bench, steps: Steps, strike: Callable[[], object]) -> float:
    """Seconds from ``strike``, in the middle of a run, to the first step that follows the gap it makes."""
    until(lambda: len(steps()) > 120)
    one.rest()
    struck_at = time.time()
    strike()
    return _resumed(steps, struck_at) - struck_at


def _gap(steps: Steps, allow: Callable[[], object]) -> float:
    """Seconds between the last step before and the first one after the job's size changes, which ``allow`` lets it."""
    settle()
    size = steps()[-1]["workers"]
    allow()
    until(lambda: steps()[-1]["workers"] != size)
    last = max(row["time_s"] for row in steps() if row["workers"] == size)
    return float(min(row["time_s"] for row in steps() if row["workers"] != size) - last)


def _resumed(steps: Steps, since: float) -> float:
    """When the first step after the first gap since then ended."""
    found: list[float] = []

    def look() -> bool:
        times = [since, *(row["time_s"] for row in steps() if row["time_s"] > since)]
        found[:] = [b for a, b in itertools.pairwise(times) if b - a > GAP_S]
        return bool(found)

    until(look)
    return found[0]


def _orchestrated(one: Bench) -> float:
    one.rest()
    job, steps = one.submit("orchestrated", **_STEADY)
    one.client.wait(job, timeout_s=WAIT_S)
    return _step_s(steps())


def _torchrun(one: Bench, number: int) -> float:
    one.rest()
    state = one.home / f"torchrun-{number}"
    spec = one.home / "torchrun.yaml"
    spec.write_text(json.dumps(to_dict(nano("by-hand", **_STEADY))))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    torchrun += ["--local-addr=127.0.0.1"]
    run([*torchrun, "-m", "benchmarks.torchrun_peer", str(spec), str(state)], dict(os.environ), ROOT, WAIT_S)
    return _step_s(steps_of(sorted(state.glob("jobs/*/attempts/*/metrics.jsonl"))))


_STEADY: dict[str, Any] = {
    "steps": 150,
    "model": llmos.ModelSource(preset="tiny"),
    "sequence_length": 128,
    "checkpoint": CheckpointPolicy(every_steps=1000),
    "validation": Validation(every_steps=1000),
}


def _step_s(rows: list[Step]) -> float:
    """Seconds of a step, without the first tenth of them."""
    steady = rows[len(rows) // 10 : -1]
    return float((steady[-1]["time_s"] - steady[0]["time_s"]) / (len(steady) - 1))


def _compared(ours: list[float], theirs: list[float], what: str) -> Measured:
    mine, peer = statistics.median(ours), statistics.median(theirs)
    shown = ", ".join(f"{a:.1f}/{b:.1f}" for a, b in zip(ours, theirs, strict=True))
    return Measured(mine, peer, mine / peer, f"{what}; pairs {shown}; {os.cpu_count()} cores")


def main() -> None:
    """Print the rows that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fault_rows")
    parser.add_argument("rows", nargs="*", metavar="NAME", help=", ".join(measure.__name__ for measure in ROWS))
    parser.add_argument("--pairs", type=int, default=PAIRS)
    options = parser.parse_args()
    with bench() as one:
        for measure in ROWS:
            if measure.__name__ in options.rows or not options.rows:
                print(json.dumps(asdict(measure(one, options.pairs))), flush=True)


if __name__ == "__main__":
    main()
