"""``python -m llmos.train SPEC``: the training loop on this machine alone, without Ray. Progress goes to stderr."""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import traceback
from pathlib import Path

from llmos.errors import LlmosError, NotFoundError, UsageError
from llmos.layout import Layout
from llmos.settings import state_dir
from llmos.spec import TrainJob, load_file
from llmos.spec.load import parse, to_dict
from llmos.train.local import train_on_ranks
from llmos.train.run import Run

INTERRUPTED = 130


def main() -> int:
    """Run the command line. Returns its exit code: 0 done, 1 failed, 2 asked wrongly, 130 stopped by Ctrl-C.

    The directory of the trained model is printed on stdout.
    """
    options = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        job, ranks = _job(options)
        run = _run(job, Layout(state_dir(options.state_dir)))
        result = train_on_ranks(run, ranks)
    except LlmosError as error:
        if options.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command continues from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    if result.phase == "yielded":
        print(f"stopped after step {result.step}; the same command continues from there", file=sys.stderr)
        return INTERRUPTED
    print(run.job_dirs.export)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llmos.train", description="Train a TrainJob here, without Ray.")
    parser.add_argument("spec", type=Path, help="a YAML file with one TrainJob")
    parser.add_argument("--nproc", type=int, help="processes (default: as many as the spec's mesh has ranks)")
    parser.add_argument("--state-dir", type=Path, help="default: LLMOS_STATE_DIR, else ~/.llmos")
    parser.add_argument("--data", action="append", metavar="PATH", help="text instead of the spec's (may be repeated)")
    parser.add_argument("--steps", type=int, help="instead of the spec's")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _job(options: argparse.Namespace) -> tuple[TrainJob, int]:
    """The job and how many ranks it runs on. Raises NotFoundError, UsageError or SpecError."""
    jobs = [spec for spec in load_file(options.spec) if isinstance(spec, TrainJob)]
    if len(jobs) != 1:
        raise UsageError(f"`{options.spec}` holds {len(jobs)} TrainJobs: expected one", param="spec")
    changed = to_dict(jobs[0])
    if options.data:
        changed["data"]["path"] = options.data
    if options.steps is not None:
        changed["steps"] = options.steps
    job = parse(changed, source="the command line")
    assert isinstance(job, TrainJob)
    ranks = job.placed_mesh.size if options.nproc is None else options.nproc
    if ranks < 1:
        raise UsageError(f"`--nproc {ranks}`: expected at least 1", param="nproc")
    return job, ranks


def _run(job: TrainJob, layout: Layout) -> Run:
    """A new attempt of ``job``, named after the spec. Raises NotFoundError for a model that is not registered."""
    dirs = layout.job(job.name)
    number = next(n for n in itertools.count(1) if not dirs.attempt(n).root.exists())
    return Run(job, dirs, dirs.attempt(number), layout.data, _base_model(job, layout))


def _base_model(job: TrainJob, layout: Layout) -> Path | None:
    """The directory of ``job.model.ref``; without a version, its newest one."""
    if job.model.ref is None:
        return None
    name, _, version = job.model.ref.partition("@")
    there = [int(path.name) for path in (layout.models / name).glob("*") if path.name.isdigit()]
    chosen = int(version) if version else max(there, default=0)
    if chosen not in there:
        known = ", ".join(f"{name}@{v}" for v in sorted(there)) or "none of that name"
        hint = f"See {layout.models}, or give another --state-dir."
        raise NotFoundError(f"no model `{job.model.ref}`: found {known}", hint=hint, param="model.ref")
    return layout.model(name, chosen)


if __name__ == "__main__":
    sys.exit(main())
