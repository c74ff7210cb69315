"""What every kind of spec is built from: the strict base model, names, durations, sizes, the mesh.

A spec is refused when it holds a key nobody reads, so a typo never silently becomes a default.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

MESH_TAG, AUTO_TAG = "<mesh>", "<auto>"
"""Marks that pydantic puts into error locations to say which form of ``mesh`` was read."""

Conflict = tuple[tuple[str, ...], str]
"""Where (field path, relative to the model) and what: one problem that involves more than one field."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_RESOURCE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_OWN_FIELDS = {"CPU": "cpus", "GPU": "gpus", "memory": "memory"}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_DURATION_UNITS_S = (86400, 3600, 60, 1)
LARGEST = 2**53
"""Of any number in a spec: up to here whole numbers stay exact in JSON, whoever reads it."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B")


class Strict(BaseModel):
    """A frozen model that refuses unknown keys and never converts types (``"2"`` is not 2)."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        # A pydantic error raised by direct construction must not print a secret that was pasted into the wrong field.
        hide_input_in_errors=True,
    )

    rules: ClassVar[tuple[Callable[[Any], Iterator[Conflict]], ...]] = ()
    """Each finds one kind of problem between fields that are valid alone. Separate functions, so that a field
    that cannot be read hides only the rules that need it."""

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> Self:
        found = [
            InitErrorDetails(
                type=PydanticCustomError("conflict", "{message}", {"message": text}), loc=where, input=None
            )
            for rule in self.rules
            for where, text in rule(self)
        ]
        if found:
            raise ValidationError.from_exception_data(type(self).__name__, found)
        return self


def check_name(value: str) -> str:
    """``value`` if it can name a job, service or model; else ValueError."""
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{value[:80]!r} is not a name: expected 1 to 64 lower-case letters, digits, `.`, `_` or `-`, "
            "beginning with a letter or digit"
        )
    return value


def check_model_ref(value: str) -> str:
    """``value`` if it is ``name`` (the newest version), ``name@version`` or ``name@alias``; else ValueError."""
    name, at, version = value.partition("@")
    if not _NAME.fullmatch(name) or (at and not (re.fullmatch(r"[1-9][0-9]{0,8}", version) or is_alias(version))):
        raise ValueError(
            f"{value[:80]!r} is not a model: expected `name` (its newest version), `name@version` or `name@alias`, "
            "as in `coder@1` or `coder@prod`"
        )
    return value


def is_alias(value: str) -> bool:
    """Whether ``value`` can stand for a version of a model: a name that begins with a letter."""
    return value[:1].isalpha() and bool(_NAME.fullmatch(value))


def check_variable(value: str) -> str:
    """``value`` if it can name an environment variable; else ValueError."""
    if not _VARIABLE.fullmatch(value):
        raise ValueError("not the name of an environment variable: expected letters, digits and `_`, as in `HF_TOKEN`")
    return value


def check_resource(value: str) -> str:
    """``value`` if it can name a custom resource; else ValueError."""
    if value in _OWN_FIELDS:
        raise ValueError(f"{value!r} is no custom resource: expected the field `{_OWN_FIELDS[value]}`")
    if not _RESOURCE.fullmatch(value):
        raise ValueError(f"{value[:80]!r} is not the name of a resource: expected letters, digits, `.`, `_` and `-`")
    return value


def parse_duration(value: object) -> float:
    """Seconds of ``"90s"``, ``"2h"``, ``"1h30m"``, ``"1.5d"`` or a positive number; else ValueError."""
    seconds: float
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = value
    else:
        match = _DURATION.fullmatch(value) if isinstance(value, str) else None
        parts = match.groups(default="0") if match else ()
        seconds = sum(float(part) * unit for part, unit in zip(parts, _DURATION_UNITS_S, strict=False))
    if not 0 < seconds <= LARGEST:
        raise ValueError(
            "not a duration: expected a positive number of seconds or text such as `90s`, `2h`, `1h30m`, `1d`"
        )
    return float(seconds)


def parse_size(value: object) -> int:
    """Bytes of ``"2GiB"`` (powers of 1024), ``"2GB"`` (powers of 1000) or a positive whole number; else ValueError."""
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match:
        amount, prefix, binary = match.groups()
        size = float(amount) * (1024 if binary else 1000) ** " KMGT".index(prefix or " ")
    else:
        size = value if isinstance(value, int) and not isinstance(value, bool) else 0
    if not 1 <= size <= LARGEST:
        raise ValueError("not a size: expected a positive number of bytes or text such as `512MiB`, `2GiB`, `1GB`")
    return int(size)


def as_list(value: object) -> object:
    """A single item as a list of one, so that ``path: a.txt`` and ``path: [a.txt]`` are the same spec."""
    return value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)


Name = Annotated[str, BeforeValidator(lambda v: check_name(v) if isinstance(v, str) else v)]
ModelRef = Annotated[str, BeforeValidator(lambda v: check_model_ref(v) if isinstance(v, str) else v)]
Variable = Annotated[str, BeforeValidator(lambda v: check_variable(v) if isinstance(v, str) else v)]
Duration = Annotated[
    float, BeforeValidator(parse_duration), WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}]})
]
Size = Annotated[int, BeforeValidator(parse_size), WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string"}]})]
_TEXT = {"type": "string", "minLength": 1}
Paths = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(as_list),
    Field(strict=False, min_length=1),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}),
]
PositiveInt = Annotated[int, Field(gt=0, le=LARGEST)]
Amount = Annotated[float, Field(gt=0, le=LARGEST)]
_ResourceName = Annotated[str, BeforeValidator(lambda v: check_resource(v) if isinstance(v, str) else v)]
CustomResources = dict[_ResourceName, Amount]


def min_at_most_max(bounds: Any) -> Iterator[Conflict]:
    """A rule for models with ``min`` and ``max``."""
    if bounds.min > bounds.max:
        yield ("min",), f"`min: {bounds.min}` is more than `max: {bounds.max}`: expected min <= max"


def _bounded(resources: Resources) -> Iterator[Conflict]:
    if resources.cpus == 0 and resources.gpus == 0 and not resources.custom:
        yield ("cpus",), "`cpus` and `gpus` are both 0: expected some of either, or nothing bounds what runs at once"


class Resources(Strict):
    """What one worker or replica holds."""

    cpus: float = Field(default=1.0, ge=0, le=LARGEST, description="CPU cores")
    gpus: float = Field(default=0.0, ge=0, le=LARGEST, description="GPUs")
    memory: Size | None = Field(default=None, description="memory reserved, such as 2GiB")
    custom: CustomResources | None = Field(default=None, description="other resources of Ray, by name, as in `TPU: 4`")

    rules = (_bounded,)


_AXES = "`dp`, `fsdp`, `tp` and `pp`"


def _reserved(mesh: Mesh) -> Iterator[Conflict]:
    for axis in ("cp", "ep"):
        if (ways := getattr(mesh, axis, 1)) > 1:
            yield (axis,), f"`{axis}: {ways}` is not supported yet: expected 1; {_AXES} split the work"


class Mesh(Strict):
    """How many ways each kind of parallelism splits the work. Absent axes are 1."""

    dp: PositiveInt = Field(default=1, description="data parallel: copies of the model")
    fsdp: PositiveInt = Field(default=1, description="data parallel with sharded parameters: ranks that share a copy")
    tp: PositiveInt = Field(default=1, description="tensor and sequence parallel: ranks that share every layer")
    pp: PositiveInt = Field(default=1, description="pipeline parallel: ranks that share the layers between them")
    cp: PositiveInt = Field(default=1, description="context parallel (reserved)")
    ep: PositiveInt = Field(default=1, description="expert parallel (reserved)")

    @property
    def size(self) -> int:
        """How many ranks the mesh has."""
        return self.dp * self.fsdp * self.tp * self.pp * self.cp * self.ep

    @property
    def readers(self) -> int:
        """How many ways the batch is split."""
        return self.dp * self.fsdp

    rules = (_reserved,)
