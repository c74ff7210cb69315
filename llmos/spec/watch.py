"""What a job does when training goes wrong: ranks that hang or lag behind, losses that are no numbers or that spike."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from llmos.spec.base import PositiveInt, Strict, parse_duration


def parse_timeout(value: object) -> float | str:
    """``"auto"``, or what :func:`parse_duration` makes of it; else ValueError."""
    if value == "auto":
        return "auto"
    try:
        return parse_duration(value)
    except ValueError as error:
        raise ValueError(f"{error}, or `auto`") from None


_Timeout = Annotated[
    float | Literal["auto"],
    BeforeValidator(parse_timeout),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}]}),
]


class Watchdog(Strict):
    """When ranks are taken to hang, and when one is called slow."""

    timeout: _Timeout = Field(
        default="auto",
        description="end the attempt, with the stacks of all ranks, when no step ends for so long; `auto` is 20 times "
        "the median step, at least 10m, at most 2h, and 30m before there have been some",
    )
    slow_rank: float = Field(
        default=1.5, gt=1, description="name a rank whose own work keeps taking so many times the median rank's"
    )


class Anomalies(Strict):
    """What to do about a step that went wrong. `skip` leaves the weights as they were; `roll_back` returns to the
    newest checkpoint and goes on behind the step's samples."""

    nan: Literal["stop", "skip", "roll_back"] = Field(
        default="stop", description="when the loss or the gradient is not a finite number (`fp16` skips by itself)"
    )
    spike: Literal["ignore", "stop", "skip", "roll_back"] = Field(
        default="ignore", description="when the loss is far above those before"
    )
    spike_sigma: float = Field(
        default=6.0, gt=0, description="how far: standard deviations (estimated from the median) above the median"
    )
    window: PositiveInt = Field(default=64, description="of the losses of so many steps; half of them must be there")
    limit: PositiveInt = Field(
        default=3, description="how many roll-backs of a job, or skipped steps in a row, before it fails"
    )
