"""``python -m llmos.train SPEC``: the training loop on this machine alone, without Ray. Progress goes to stderr."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
from pathlib import Path

from llmos.control.capacity import placed
from llmos.errors import ConflictError, LlmosError, NotFoundError, UsageError
from llmos.files import write_json
from llmos.layout import Layout
from llmos.local import base_model, next_attempt
from llmos.settings import state_dir
from llmos.spec import TrainJob, load_file
from llmos.spec.load import parse, to_dict
from llmos.train import checkpoint
from llmos.train.export_saved import export_saved
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
        layout = Layout(state_dir(options.state_dir))
        job, ranks = _job(options, layout)
        if options.export:
            print(_export(options.export, job, layout, options.step))
            return 0
        run = _run(job, layout)
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
    parser.add_argument("--profile", action="store_true", help="trace some steps (default: 5 to 7)")
    parser.add_argument(
        "--export", type=Path, metavar="DIR", help="do not train: write the model of a checkpoint to DIR"
    )
    parser.add_argument("--step", type=int, help="with --export: which checkpoint (default: the newest)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _job(options: argparse.Namespace, layout: Layout) -> tuple[TrainJob, int]:
    """The job with its mesh, and how many ranks it runs on. Raises NotFoundError, UsageError or SpecError."""
    jobs = [spec for spec in load_file(options.spec) if isinstance(spec, TrainJob)]
    if len(jobs) != 1:
        raise UsageError(f"`{options.spec}` holds {len(jobs)} TrainJobs: expected one", param="spec")
    changed = to_dict(jobs[0])
    if options.data:
        changed["data"] |= {"path": options.data, "sources": None}
    if options.steps is not None:
        changed["steps"] = options.steps
    if options.profile:
        changed["profile"] = changed.get("profile") or {}
    job = parse(changed, source="the command line")
    assert isinstance(job, TrainJob)
    job = placed(job, base_model(job, layout))
    ranks = job.placed_mesh.size if options.nproc is None else options.nproc
    if ranks < 1:
        raise UsageError(f"`--nproc {ranks}`: expected at least 1", param="nproc")
    return job, ranks


def _export(target: Path, job: TrainJob, layout: Layout, step: int | None) -> Path:
    """Export a checkpoint of ``job`` to ``target``. Raises NotFoundError, ConflictError or CheckpointError."""
    if target.exists():
        raise ConflictError(f"{target} exists: expected a new directory", hint="Name another one.", param="export")
    directory = layout.job(job.name).checkpoints
    there = dict(checkpoint.saved(directory))
    path = there.get(max(there, default=0) if step is None else step)
    if path is None:
        known = ", ".join(map(str, sorted(there))) or "none"
        raise NotFoundError(f"no such checkpoint under {directory}: found steps {known}", param="step")
    export_saved(target, path, job, layout.data, base_model(job, layout))
    return target


def _run(job: TrainJob, layout: Layout) -> Run:
    """A new attempt of ``job``, named after the spec. Raises NotFoundError for a model that is not registered."""
    dirs = layout.job(job.name)
    write_json(dirs.spec, to_dict(job))
    return Run(job, dirs, dirs.attempt(next_attempt(dirs)), layout.data, base_model(job, layout), layout.calibration)


if __name__ == "__main__":
    sys.exit(main())
