"""What a job says to the scheduler: whose it is, how urgent, what it comes after, and how it lies on nodes."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from llmos.spec.base import Duration, Name, Strict, as_list

DEFAULT_TENANT = "default"
"""Whose jobs are that belong to nobody else. There is always one of this name."""

_JOB = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,126}")
_VALUES = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}(\|[A-Za-z0-9][A-Za-z0-9._-]{0,62}){0,31}")


def _check_job(value: str) -> str:
    if not _JOB.fullmatch(value):
        raise ValueError(f"{value[:80]!r} is not a job: expected an id such as `coder-3`, or a name for its newest job")
    return value


def _check_label(value: str) -> str:
    if not _LABEL.fullmatch(value):
        what = "expected letters, digits, `.`, `_`, `-` and `/`, as in `rack` or `ray.io/accelerator-type`"
        raise ValueError(f"{value[:80]!r} is not the name of a node label: {what}")
    return value


def _check_values(value: str) -> str:
    if not _VALUES.fullmatch(value):
        raise ValueError(f"{value[:80]!r} is not a value of a node label: expected such as `H100`, or `A100|H100`")
    return value


Label = Annotated[str, BeforeValidator(lambda v: _check_label(v) if isinstance(v, str) else v)]
LabelValues = Annotated[str, BeforeValidator(lambda v: _check_values(v) if isinstance(v, str) else v)]
_JobRef = Annotated[str, BeforeValidator(lambda v: _check_job(v) if isinstance(v, str) else v)]
_TEXT = {"type": "string"}

OfTenant = Annotated[
    Name | None, Field(description="whose job it is: the tenant of the key that submits it; another's needs `admin`")
]
Priority = Annotated[
    int, Field(ge=-100, le=100, description="higher ones go first, and may end lower ones that are `preemptible`")
]
After = Annotated[
    tuple[_JobRef, ...],
    BeforeValidator(as_list),
    Field(strict=False, max_length=256, description="jobs, by id or name, that must have succeeded before it starts"),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}),
]
ExpectedRuntime = Annotated[
    Duration | None,
    Field(description="how long it runs in all; without it, what earlier jobs of its name and tenant took is used"),
]
Preemptible = Annotated[bool, Field(description="whether it may be asked to end for a job of higher priority")]


class Gang(Strict):
    """How the workers lie on nodes. They start all or none."""

    strategy: Literal["pack", "spread", "strict-pack"] = Field(
        default="pack", description="on few nodes, on as many as there are, or all on one"
    )
    topology: Label | None = Field(
        default=None, description="a node label, such as `rack`: all nodes of the gang have the same value of it"
    )
    labels: dict[Label, LabelValues] = Field(
        default_factory=dict,
        description="what each node must have, as in `accelerator: H100`; a bar between two values: either",
    )
