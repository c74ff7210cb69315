"""``llmos estimate``: how many machines, how long, what it costs; and what ``llmos train --dry-run`` prints."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llmos import settings
from llmos.cli import estimate_options as option
from llmos.cli.output import Format, Output, client, fields, note, say, say_json
from llmos.core import capacity
from llmos.errors import NotFoundError, UsageError
from llmos.files import read_json, write_json
from llmos.layout import Layout

if TYPE_CHECKING:
    from llmos.core.capacity import Candidate, Demand, Hardware, Load, Mesh, ModelShape
    from llmos.spec import TrainJob

app = typer.Typer()
PANEL = "Planning"
SHOWN = 10
TOKENS_PER_WEIGHT = 20
"""Hoffmann et al., arXiv 2203.15556: what gives the lowest loss for the operations spent."""
_AXIS = re.compile(r"(dp|fsdp|tp|pp|cp)\s*[= ]?\s*(\d{1,6})")
_UNITS = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


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
    kind = _kind(gpu, price, Layout(settings.state_dir(state_dir)), calibrate)
    if model is None:
        return _nothing_to_estimate(calibrate)
    shape = shape_of(model)
    if requests is not None:
        return _say_serving(
            shape, capacity.Load(requests, prompt, answer, first_token, per_token), kind, weights, output
        )
    training = _training(sequence, precision, optimizer, kind, compiled, schedule, stages)
    demand = _demand(shape, tokens, training, kind, batch, micro_batch, checkpointing, mesh)
    _say_training(_answer(demand, gpus, deadline), demand, output)


def dry_run(job: TrainJob, output: Format, here: bool) -> None:
    """Print what ``job`` would take, and submit nothing. ``here``: on this machine, with the models of its state
    directory. Raises UsageError that says what would fit."""
    from llmos.cli.capacity import job_table, job_view
    from llmos.control.capacity import hardware_of, model_shape, ways
    from llmos.local import registered

    base = None
    if job.model.ref:
        layout = Layout(settings.state_dir())
        base = registered(job.model.ref, layout) if here else Path(client().model(job.model.ref)["path"])
    shape = model_shape(job, base)
    assumed = hardware_of(job)
    measured = calibrated(assumed, Layout(settings.state_dir()))
    kind = dataclasses.replace(measured, memory_bytes=assumed.memory_bytes)
    way = ways(job, shape, kind)[0]
    if output is Format.JSON:
        return say_json(job_view(job, way, kind, shape.num_parameters))
    say(job_table(job, way, kind, shape.num_parameters))


def shape_of(model: str) -> ModelShape:
    """The shape of a preset, a size, or a directory with config.json. Raises NotFoundError, UsageError, ModelError."""
    from llmos.models import ModelConfig
    from llmos.spec import PRESETS, Data

    if model in PRESETS:
        return capacity.ModelShape.of(PRESETS[model], vocab_size=Data.model_fields["vocab_size"].default)
    if capacity.is_size(model):
        return capacity.shape_of_size(model)
    path = Path(model).expanduser()
    directory = path.parent if path.name == "config.json" else path
    if not (directory / "config.json").is_file():
        known = f"a preset ({', '.join(PRESETS)}), a size such as 8B, or a directory with config.json"
        raise NotFoundError(f"no model `{model[:200]}`: expected {known}", hint="Check the path.")
    return capacity.ModelShape.of(ModelConfig.load(directory))


def calibrated(kind: Hardware, layout: Layout) -> Hardware:
    """``kind`` with what ``--calibrate`` measured of it in this state directory, if it did."""
    measured = (read_json(layout.calibration) or {}).get(kind.kind)
    return capacity.calibrated(kind, measured) if measured else kind


def parse_tokens(text: str) -> float:
    """``15T`` → 15e12. Raises UsageError."""
    unit = _UNITS.get(text[-1:])
    try:
        number = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise UsageError(
            f"`--tokens {text[:40]}`: expected a number of tokens, as in 15T, 300B or 1e9", param="--tokens"
        )
    return number


def parse_mesh(text: str) -> Mesh:
    """``fsdp=8,tp=4`` → the mesh; ``×`` or spaces may stand for the comma. Raises UsageError."""
    parts = [part for part in re.split(r"[,×x]\s*|\s+(?=[a-z])", text.strip()) if part]
    found = [_AXIS.fullmatch(part.strip()) for part in parts]
    ways = {match[1]: int(match[2]) for match in found if match}
    if len(ways) < len(parts) or not ways or min(ways.values()) < 1:
        axes = "dp, fsdp, tp, pp and cp"
        raise UsageError(f"`--mesh {text[:40]}`: expected sizes of {axes}, such as fsdp=8,tp=4", param="--mesh")
    return capacity.Mesh(**ways)


def _positions(shape: ModelShape, tokens: int, what: str) -> None:
    if tokens > shape.max_position:
        note(f"warning: {what} {tokens:,} is longer than the {shape.max_position:,} positions of the model")


def _nothing_to_estimate(calibrated: bool) -> None:
    if not calibrated:
        raise UsageError("no MODEL was given: expected a preset, a size such as 8B, or a directory", param="MODEL")


def _kind(gpu: str, price: float | None, layout: Layout, calibrate: bool) -> Hardware:
    """The kind called ``gpu`` at that price, as this machine is if it was, or is now, measured. Raises UsageError."""
    if calibrate:
        _calibrate(layout)
    kind = calibrated(capacity.hardware(gpu), layout)
    return kind if price is None else dataclasses.replace(kind, price=price)


def _training(
    sequence: int, precision: str, optimizer: str, kind: Hardware, compiled: bool, schedule: str, stages: int
) -> capacity.Training:
    """What the options say of how to train. Raises UsageError for what is not known, or does not go together."""
    _known("precision", precision, tuple(capacity.PRECISIONS))
    _known("optimizer", optimizer, tuple(capacity.OPTIMIZERS))
    _known("schedule", schedule, capacity.SCHEDULES)
    if stages > 1 and schedule not in ("interleaved", "zero_bubble"):
        what = f"`--stages {stages}`: `--schedule {schedule}` runs 1 stage a rank"
        raise UsageError(what, hint="Take --schedule interleaved or zero_bubble.", param="--stages")
    return capacity.Training(
        *(1, 1, sequence, precision, optimizer),
        schedule=schedule,
        stages=stages,
        compiled=compiled,
        cpu=kind.kind == "CPU",
    )


def _demand(
    shape: ModelShape,
    tokens: str,
    training: capacity.Training,
    kind: Hardware,
    batch: int | None,
    micro_batch: int | None,
    checkpointing: str,
    mesh: str,
) -> Demand:
    """What is to be trained, and what is left open. Raises UsageError."""
    total = parse_tokens(tokens) if tokens else float(TOKENS_PER_WEIGHT * shape.num_parameters)
    modes = _known("checkpointing", checkpointing, ("auto", *capacity.CHECKPOINTING), auto=capacity.CHECKPOINTING)
    _positions(shape, training.sequence, "--sequence")
    wanted = parse_mesh(mesh) if mesh else None
    return capacity.Demand(shape, total, training, kind, batch, micro_batch, modes, wanted)


def _known(option: str, value: str, known: tuple[str, ...], auto: tuple[str, ...] = ()) -> tuple[str, ...]:
    """``value`` as the only choice, or all that ``auto`` may choose from. Raises UsageError for what is not known."""
    if value not in known:
        raise UsageError(
            f"`--{option} {value[:40]}`: expected one of {', '.join(known)}",
            hint="`llmos estimate --help` lists the options.",
            param=f"--{option}",
        )
    return auto if value == "auto" else (value,)


def _answer(demand: Demand, gpus: int | None, deadline: str) -> list[Candidate]:
    """The ways on as many ranks as were asked for, as the deadline needs, or as hold the model. Raises UsageError."""
    if gpus and demand.mesh and gpus != demand.mesh.size:
        what = f"`--gpus {gpus}` with `--mesh`: {demand.mesh} are {demand.mesh.size} ranks"
        raise UsageError(what, hint="Leave one of the two out.", param="--gpus")
    seconds = _deadline_s(deadline) if deadline else math.inf
    ranks = demand.mesh.size if demand.mesh else gpus
    if ranks is None:
        return demand.within(seconds) if deadline else demand.fewest()
    found = demand.on(ranks)
    if not found:
        raise demand.refusal(ranks)
    if (late_s := demand.tokens / found[0].time.tokens_per_s) > seconds:
        note(f"warning: {ranks} × {demand.kind.kind} take {late_s / 86400:.3g} days, longer than {deadline}")
    return found


def _deadline_s(deadline: str) -> float:
    from llmos.spec.base import parse_duration

    try:
        return parse_duration(deadline)
    except ValueError as error:
        raise UsageError(f"`--deadline {deadline[:40]}` is {error}", param="--deadline") from None


def _say_training(found: list[Candidate], demand: Demand, output: Format) -> None:
    from llmos.cli.capacity import cost_view, training_table, way_view

    kind, parameters = demand.kind, demand.shape.num_parameters
    if output is Format.JSON:
        views = [way_view(way) | cost_view(way, kind, demand.tokens) for way in found]
        about: dict[str, Any] = {"parameters": parameters, "tokens": demand.tokens, "hardware": kind.kind}
        return say_json({**about, "recommended": views[0], "feasible": views})
    say(training_table(found[:SHOWN], kind, demand.tokens))
    more = f"; {len(found) - SHOWN} slower ones with -o json" if len(found) > SHOWN else ""
    note(
        f"{parameters / 1e9:.3g}B parameters, {demand.tokens:.3g} tokens, {found[0].training.batch} sequences a step, "
        f"{_hardware(found[0].mesh.size, kind)}; recommended: the first, {found[0].mesh}{more}"
    )


def _say_serving(shape: ModelShape, load: Load, kind: Hardware, weights: str, output: Format) -> None:
    from llmos.cli.capacity import serving_table, serving_view

    _known("weights", weights, tuple(capacity.WEIGHTS))
    _positions(shape, load.context, "--prompt + --answer")
    found = capacity.serve(shape, load, kind, weights)
    if output is Format.JSON:
        return say_json(serving_view(found, load, kind, weights))
    say(serving_table(found))
    note(
        f"for {load.requests_per_s:g} requests/s of {load.prompt} + {load.answer} tokens, {weights} weights; "
        f"recommended: the first, {_hardware(found[0].accelerators, kind)}"
    )


def _hardware(ranks: int, kind: Hardware) -> str:
    """``16 × H100 in 2 machines``."""
    from llmos.cli.capacity import machines

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
