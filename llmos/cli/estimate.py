"""``llmos estimate``: how many machines, how long, what it costs; and what ``llmos train --dry-run`` prints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llmos import settings
from llmos.cli import estimate_options as option
from llmos.cli.output import Format, Output, client, fields, note, say, say_json
from llmos.errors import AuthError, ClusterError, UsageError
from llmos.files import read_json, write_json
from llmos.layout import Layout

if TYPE_CHECKING:
    from llmos.control.estimate import Answer, Question
    from llmos.core.capacity import Candidate, Demand, Hardware, Load, Serving
    from llmos.core.types import Node
    from llmos.spec import TrainJob

app = typer.Typer()
PANEL = "Planning"
SHOWN = 10


@app.command(rich_help_panel=PANEL)
def estimate(
    model: option.Model = None,
    gpus: option.Gpus = None,
    gpu: option.Gpu = "H100",
    tokens: option.Tokens = "",
    deadline: option.Deadline = "",
    sequence: option.Sequence = 8192,
    batch: option.Batch = None,
    micro_batch: option.MicroBatch = None,
    mesh: option.MeshText = "",
    precision: option.Precision = "bf16",
    optimizer: option.Optimizer = "adamw",
    checkpointing: option.Recompute = "auto",
    schedule: option.Schedule = "1f1b",
    stages: option.Stages = 1,
    compiled: option.Compiled = False,
    price: option.Price = None,
    requests: option.Requests = None,
    prompt: option.Prompt = 1024,
    answer: option.Answer = 256,
    first_token: option.FirstToken = 1.0,
    per_token: option.PerToken = 0.05,
    weights: option.Weights = "bf16",
    calibrate: option.Calibrate = False,
    state_dir: option.StateDir = None,
    output: Output = Format.TABLE,
) -> None:
    """Say what a model takes to train, or to serve: memory, time and price for each way to split it."""
    from llmos.control.estimate import Question

    how = (gpus, gpu, tokens, deadline, sequence, batch, micro_batch, mesh, precision, optimizer, checkpointing)
    serving = (requests, prompt, answer, first_token, per_token, weights)
    _say(model, Question(*how, schedule, stages, compiled, price, *serving), state_dir, calibrate, output)


def dry_run(job: TrainJob, output: Format, here: bool) -> None:
    """Print what ``job`` would take, on the mesh that it would get, and submit nothing. ``here``: on this machine, with
    the models of its state directory. Raises UsageError that says what would fit."""
    from llmos.cli.capacity import job_table, job_view
    from llmos.control.capacity import hardware_of, model_shape, placed, ways
    from llmos.control.estimate import calibrated
    from llmos.local import registered

    base, nodes = None, [] if here or job.mesh != "auto" else _nodes()
    if job.model.ref:
        layout = Layout(settings.state_dir())
        base = registered(job.model.ref, layout) if here else Path(client().model(job.model.ref)["path"])
    shape, job = model_shape(job, base), placed(job, base, nodes)
    assumed = hardware_of(job, nodes)
    measured = calibrated(assumed, Layout(settings.state_dir()))
    kind = dataclasses.replace(measured, memory_bytes=assumed.memory_bytes)
    way = ways(job, shape, kind)[0]
    if output is Format.JSON:
        return say_json(job_view(job, way, kind, shape.num_parameters))
    say(job_table(job, way, kind, shape.num_parameters))


def _nodes() -> list[Node]:
    """The nodes of the cluster that one is logged in to, by which the control module chooses a mesh; else none."""
    from llmos.core.types import Node, Resources

    try:
        found = client().status()["nodes"]
    except (ClusterError, AuthError) as error:
        note(f"no cluster was asked, which may choose another mesh for its nodes: {error.message}")
        return []
    totals = [(node, node["total"]) for node in found]
    return [
        Node(
            node["id"],
            Resources(total["cpus"], total["gpus"], total["memory_bytes"], tuple(sorted(total["custom"].items()))),
            draining=node["draining"],
        )
        for node, total in totals
    ]


def _say(model: str | None, question: Question, state_dir: Path | None, calibrate: bool, output: Format) -> None:
    from llmos.control.estimate import asked, shape_of, view

    layout = Layout(settings.state_dir(state_dir))
    if calibrate:
        _calibrate(layout)
    if model is None:
        return _nothing_to_estimate(calibrate)
    answer = asked(shape_of(model), question, layout)
    for warning in answer.warnings:
        note(f"warning: {warning}")
    if output is Format.JSON:
        return say_json(view(answer))
    _say_table(answer, question.weights)


def _nothing_to_estimate(calibrated: bool) -> None:
    if not calibrated:
        raise UsageError("no MODEL was given: expected a preset, a size such as 8B, or a directory", param="MODEL")


def _say_table(answer: Answer, weights: str) -> None:
    from llmos.core.capacity import Candidate, Serving

    if answer.load:
        served = [way for way in answer.ways if isinstance(way, Serving)]
        return _say_serving(served, answer.load, answer.kind, weights)
    assert answer.demand
    _say_training([way for way in answer.ways if isinstance(way, Candidate)], answer.demand)


def _say_training(found: list[Candidate], demand: Demand) -> None:
    from llmos.cli.capacity import training_table

    say(training_table(found[:SHOWN], demand.kind, demand.tokens))
    more = f"; {len(found) - SHOWN} slower ones with -o json" if len(found) > SHOWN else ""
    note(
        f"{demand.shape.num_parameters / 1e9:.3g}B parameters, {demand.tokens:.3g} tokens, {found[0].training.batch} "
        f"sequences a step, {_hardware(found[0].mesh.size, demand.kind)}; recommended: the first, {found[0].mesh}{more}"
    )


def _say_serving(found: list[Serving], load: Load, kind: Hardware, weights: str) -> None:
    from llmos.cli.capacity import serving_table

    say(serving_table(found))
    note(
        f"for {load.requests_per_s:g} requests/s of {load.prompt} + {load.answer} tokens, {weights} weights; "
        f"recommended: the first, {_hardware(found[0].accelerators, kind)}"
    )


def _hardware(ranks: int, kind: Hardware) -> str:
    """``16 × H100 in 2 machines``."""
    from llmos.control.estimate import machines

    count = machines(ranks, kind)
    return f"{ranks} × {kind.kind} in {count} machine{'s' if count > 1 else ''}"


def _calibrate(layout: Layout) -> None:
    """Measure this machine and remember it."""
    from llmos.parallel.calibrate import calibrate, kind_name

    note("measuring products, memory and sums between ranks; nothing else should run")
    measured, name = calibrate(), kind_name()
    layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_json(layout.calibration, (read_json(layout.calibration) or {}) | {name: measured})
    note(f"{name}, remembered in {layout.calibration}:")
    note(fields([(key, f"{value:.3g}") for key, value in measured.items()], indent="  "))
