"""What ``llmos estimate``, ``llmos.estimate`` and ``POST /api/v1/estimate`` answer: a question in words and numbers,
and the ways to train or to serve that the capacity model finds."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from llmos import settings
from llmos.core import capacity
from llmos.core.capacity import Candidate, Demand, Hardware, Load, Mesh, ModelShape, Serving, Training
from llmos.errors import NotFoundError, UsageError
from llmos.files import read_json
from llmos.layout import Layout
from llmos.models import ModelConfig
from llmos.spec import PRESETS, Data
from llmos.spec.base import parse_duration
from llmos.views import View

DAY_S = 86400.0
TOKENS_PER_WEIGHT = 20
"""Hoffmann et al., arXiv 2203.15556: what gives the lowest loss for the operations spent."""
MOST, MOST_GPUS = 10**9, 10**5
"""The largest numbers that are looked into: a search takes time."""
_AXIS = re.compile(r"(dp|fsdp|tp|pp|cp)\s*[= ]?\s*(\d{1,6})")
_UNITS = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@dataclass(frozen=True, slots=True)
class Question:
    """Everything but the model, as the options of ``llmos estimate`` say it. With ``requests`` per second it is about
    serving, else about training; without ``gpus``, ``mesh`` and ``deadline``, about the fewest that hold the model."""

    gpus: int | None = None
    gpu: str = "H100"
    tokens: str | float = ""
    deadline: str | float = ""
    sequence: int = 8192
    batch: int | None = None
    micro_batch: int | None = None
    mesh: str = ""
    precision: str = "bf16"
    optimizer: str = "adamw"
    checkpointing: str = "auto"
    schedule: str = "1f1b"
    stages: int = 1
    compile: bool = False
    price: float | None = None
    requests: float | None = None
    prompt: int = 1024
    answer: int = 256
    first_token: float = 1.0
    per_token: float = 0.05
    weights: str = "bf16"

    def __post_init__(self) -> None:
        """Raises UsageError for a number that none can be."""
        for name in ("gpus", "sequence", "batch", "micro_batch", "stages", "prompt", "answer", "requests"):
            value, most = getattr(self, name), MOST_GPUS if name == "gpus" else MOST
            if value is not None and not 0 < value <= most:
                what = f"`--{name.replace('_', '-')} {value}`: expected more than 0 and at most {most:,}"
                raise UsageError(what, param=name)
        if self.price is not None and not 0 <= self.price < math.inf:
            raise UsageError(f"`--price {self.price}`: expected dollars per hour of one GPU", param="price")


@dataclass(frozen=True, slots=True)
class Answer:
    """The ways that were found, the best first; ``warnings`` are for people. Exactly one of the last two is there."""

    ways: list[Candidate] | list[Serving]
    kind: Hardware
    warnings: tuple[str, ...]
    demand: Demand | None = None
    load: Load | None = None


def estimate(model: str, *, state_dir: Path | None = None, **options: Any) -> View:
    """What ``llmos estimate MODEL -o json`` prints: how a model trains, or is served, and what that takes and costs.

    ``model`` is a preset, a size such as ``8B``, or a directory with config.json; ``options`` are the command's, such
    as ``gpus=64`` or ``micro_batch=2`` (:class:`Question`). No cluster is asked. Raises UsageError, NotFoundError.
    """
    return view(asked(shape_of(model), question(options), Layout(settings.state_dir(state_dir))))


def question(options: Mapping[str, Any]) -> Question:
    """``options`` as a question. Raises UsageError for one that there is not, and for a value of another type."""
    known = [field.name for field in fields(Question)]
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean `{near[0]}`?" if near else ""
            raise UsageError(f"`{name[:40]}` is no option: expected some of {', '.join(known)}", hint=hint, param=name)
    try:
        return TypeAdapter(Question).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        raise UsageError(f"`{name}: {str(options.get(name))[:40]}`: {first['msg'].lower()}", param=name) from None


def asked(shape: ModelShape, question: Question, layout: Layout) -> Answer:
    """The answer for a model of ``shape``; a kind that was measured is as in ``layout``. Raises UsageError."""
    kind = calibrated(capacity.hardware(question.gpu), layout)
    kind = kind if question.price is None else dataclasses.replace(kind, price=question.price)
    return _serving(shape, question, kind) if question.requests else _training(shape, question, kind)


def shape_of(model: str) -> ModelShape:
    """The shape of a preset, a size, or a directory with config.json. Raises NotFoundError, UsageError, ModelError."""
    if found := named(model):
        return found
    path = Path(model).expanduser()
    directory = path.parent if path.name == "config.json" else path
    if not (directory / "config.json").is_file():
        known = f"a preset ({', '.join(PRESETS)}), a size such as 8B, or a directory with config.json"
        raise NotFoundError(f"no model `{model[:200]}`: expected {known}", hint="Check the path.")
    return ModelShape.of(ModelConfig.load(directory))


def named(model: str) -> ModelShape | None:
    """The shape of a preset or a size, if ``model`` is one. Raises UsageError for a size that none has."""
    if model in PRESETS:
        return ModelShape.of(PRESETS[model], vocab_size=Data.model_fields["vocab_size"].default)
    return capacity.shape_of_size(model) if capacity.is_size(model) else None


def calibrated(kind: Hardware, layout: Layout) -> Hardware:
    """``kind`` with what ``--calibrate`` measured of it in this state directory, if it did."""
    measured = (read_json(layout.calibration) or {}).get(kind.kind)
    return capacity.calibrated(kind, measured) if measured else kind


def parse_tokens(text: str | float) -> float:
    """``15T`` → 15e12. Raises UsageError."""
    unit = _UNITS.get(str(text)[-1:])
    try:
        number = float(str(text)[:-1]) * unit if unit else float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        what = f"`--tokens {str(text)[:40]}`: expected a number of tokens, as in 15T, 300B or 1e9"
        raise UsageError(what, param="tokens")
    return number


def parse_mesh(text: str) -> Mesh:
    """``fsdp=8,tp=4`` → the mesh; ``×`` or spaces may stand for the comma. Raises UsageError."""
    parts = [part for part in re.split(r"[,×x]\s*|\s+(?=[a-z])", text.strip()) if part]
    found = [_AXIS.fullmatch(part.strip()) for part in parts]
    ways = {match[1]: int(match[2]) for match in found if match}
    if len(ways) < len(parts) or not ways or min(ways.values()) < 1:
        axes = "dp, fsdp, tp, pp and cp"
        raise UsageError(f"`--mesh {text[:40]}`: expected sizes of {axes}, such as fsdp=8,tp=4", param="mesh")
    return Mesh(**ways)


def view(answer: Answer) -> View:
    """The answer as JSON: bytes, seconds, shares between 0 and 1, dollars (None where no price is known)."""
    about: dict[str, Any] = {"hardware": answer.kind.kind, "warnings": list(answer.warnings)}
    if answer.load:
        ways = [serving_view(way, answer.kind) for way in answer.ways if isinstance(way, Serving)]
        return View({**about, "load": dataclasses.asdict(answer.load), "recommended": ways[0], "ways": ways})
    assert answer.demand
    shape, tokens = answer.demand.shape, answer.demand.tokens
    found = (way for way in answer.ways if isinstance(way, Candidate))
    feasible = [way_view(way) | cost_view(way, answer.kind, tokens) for way in found]
    about |= {"parameters": shape.num_parameters, "tokens": tokens}
    return View({**about, "recommended": feasible[0], "feasible": feasible})


def way_view(way: Candidate) -> dict[str, Any]:
    """One way to train (JSON)."""
    return {
        "mesh": dataclasses.asdict(way.mesh),
        "ranks": way.mesh.size,
        "batch": way.training.batch,
        "micro_batch": way.training.micro_batch,
        "checkpointing": way.training.checkpointing,
        "memory_bytes": {"total": way.memory.total, **dataclasses.asdict(way.memory)},
        "step_s": way.time.total_s,
        **dataclasses.asdict(way.time),
        "bubble": way.time.bubble,
    }


def cost_view(way: Candidate, kind: Hardware, tokens: float) -> dict[str, Any]:
    """What ``tokens`` tokens take that way (JSON): machines, days, hours of all accelerators, dollars."""
    days = tokens / way.time.tokens_per_s / DAY_S
    hours = days * 24 * way.mesh.size
    price = None if kind.price is None else hours * kind.price
    return {"machines": machines(way.mesh.size, kind), "days": days, "accelerator_hours": hours, "price": price}


def serving_view(way: Serving, kind: Hardware) -> dict[str, Any]:
    """One way to serve (JSON)."""
    return {**dataclasses.asdict(way), "machines": machines(way.accelerators, kind)}


def machines(ranks: int, kind: Hardware) -> int:
    """Nodes that ``ranks`` accelerators of ``kind`` fill."""
    return -(-ranks // kind.per_node)


def _serving(shape: ModelShape, asked: Question, kind: Hardware) -> Answer:
    _known("weights", asked.weights, tuple(capacity.WEIGHTS))
    load = Load(asked.requests or 0.0, asked.prompt, asked.answer, asked.first_token, asked.per_token)
    found = capacity.serve(shape, load, kind, asked.weights)
    return Answer(found, kind, _positions(shape, load.context, "--prompt + --answer"), load=load)


def _training(shape: ModelShape, asked: Question, kind: Hardware) -> Answer:
    total = parse_tokens(asked.tokens) if asked.tokens else float(TOKENS_PER_WEIGHT * shape.num_parameters)
    auto = ("auto", *capacity.CHECKPOINTING)
    modes = _known("checkpointing", asked.checkpointing, auto, auto=capacity.CHECKPOINTING)
    mesh = parse_mesh(asked.mesh) if asked.mesh else None
    demand = Demand(shape, total, _how(asked, kind), kind, asked.batch, asked.micro_batch, modes, mesh)
    seconds = _deadline_s(asked.deadline) if asked.deadline else math.inf
    ways, warnings = _ways(demand, asked.gpus, seconds), _positions(shape, asked.sequence, "--sequence")
    if (late_s := total / ways[0].time.tokens_per_s) > seconds:
        took = f"{ways[0].mesh.size} × {kind.kind} take {late_s / DAY_S:.3g} days"
        warnings += (f"{took}, longer than {asked.deadline}",)
    return Answer(ways, kind, warnings, demand=demand)


def _how(asked: Question, kind: Hardware) -> Training:
    """How to train, but for what the demand leaves open. Raises UsageError for what is not known, or not together."""
    _known("precision", asked.precision, tuple(capacity.PRECISIONS))
    _known("optimizer", asked.optimizer, tuple(capacity.OPTIMIZERS))
    _known("schedule", asked.schedule, capacity.SCHEDULES)
    if asked.stages > 1 and asked.schedule not in ("interleaved", "zero_bubble"):
        what = f"`--stages {asked.stages}`: `--schedule {asked.schedule}` runs 1 stage a rank"
        raise UsageError(what, hint="Take --schedule interleaved or zero_bubble.", param="stages")
    return Training(
        *(1, 1, asked.sequence, asked.precision, asked.optimizer),
        schedule=asked.schedule,
        stages=asked.stages,
        compiled=asked.compile,
        cpu=kind.kind == "CPU",
    )


def _ways(demand: Demand, gpus: int | None, seconds: float) -> list[Candidate]:
    """The ways on as many ranks as were asked for, as the deadline needs, or as hold the model. Raises UsageError."""
    if gpus and demand.mesh and gpus != demand.mesh.size:
        what = f"`--gpus {gpus}` with `--mesh`: {demand.mesh} are {demand.mesh.size} ranks"
        raise UsageError(what, hint="Leave one of the two out.", param="gpus")
    ranks = demand.mesh.size if demand.mesh else gpus
    if ranks is None:
        return demand.within(seconds) if seconds < math.inf else demand.fewest()
    found = demand.on(ranks)
    if not found:
        raise demand.refusal(ranks)
    return found


def _deadline_s(deadline: str | float) -> float:
    try:
        return parse_duration(deadline)
    except ValueError as error:
        raise UsageError(f"`--deadline {str(deadline)[:40]}` is {error}", param="deadline") from None


def _positions(shape: ModelShape, tokens: int, what: str) -> tuple[str, ...]:
    longer = f"{what} {tokens:,} is longer than the {shape.max_position:,} positions of the model"
    return (longer,) if tokens > shape.max_position else ()


def _known(option: str, value: str, known: tuple[str, ...], auto: tuple[str, ...] = ()) -> tuple[str, ...]:
    """``value`` as the only choice, or all that ``auto`` may choose from. Raises UsageError for what is not known."""
    if value not in known:
        raise UsageError(
            f"`--{option} {value[:40]}`: expected one of {', '.join(known)}",
            hint="`llmos estimate --help` lists the options.",
            param=option,
        )
    return auto if value == "auto" else (value,)
