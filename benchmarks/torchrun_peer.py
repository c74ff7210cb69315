"""The training loop of a job on ranks that torchrun started: no control module, no Ray.

torchrun --nproc=2 -m benchmarks.torchrun_peer SPEC STATE_DIR
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from llmos.layout import Layout
from llmos.local import base_model
from llmos.parallel.world import World
from llmos.spec import TrainJob, load_file
from llmos.train.limits import collective_timeout_s
from llmos.train.loop import train
from llmos.train.run import Run


def main() -> None:
    """Train the job of SPEC as this rank."""
    (job,) = load_file(Path(sys.argv[1]))
    assert isinstance(job, TrainJob)
    layout = Layout(Path(sys.argv[2]))
    directories = layout.job(job.name)
    attempt = directories.attempt(1)
    attempt.root.mkdir(parents=True, exist_ok=True)
    dist.init_process_group("gloo", timeout=timedelta(seconds=collective_timeout_s(job.watchdog.timeout)))
    train(Run(job, directories, attempt, layout.data, base_model(job, layout), layout.calibration), World.current())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
