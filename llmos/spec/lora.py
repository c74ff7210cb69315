"""Low-rank adapters: which matrices get one, and how large."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, get_args

from pydantic import Field

from llmos.spec.base import LARGEST, Conflict, PositiveInt, Strict

Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _some_targets(lora: Lora) -> Iterator[Conflict]:
    if not lora.targets:
        yield ("targets",), "`targets` is empty: expected at least one of them, or no `lora`"


class Lora(Strict):
    """Low-rank adapters (arXiv 2106.09685): only they are trained, the weights stay as they are."""

    rank: PositiveInt = Field(default=16, description="columns of an adapter's two matrices")
    alpha: float = Field(default=32.0, gt=0, le=LARGEST, description="adapters are scaled by alpha / rank")
    # all of them: adapters of attention alone learn less at the same size (QLoRA, arXiv 2305.14314, section 4)
    targets: Annotated[tuple[Projection, ...], Field(strict=False)] = Field(
        default=get_args(Projection), description="the matrices that get one"
    )
    save_adapter: bool = Field(default=False, description="write the adapter by itself as well, in PEFT's layout")

    rules = (_some_targets,)
