"""How rotary embeddings are stretched beyond the context a model was trained on, as config.json says it.

transformers 4 spreads it over ``rope_theta`` and ``rope_scaling``, transformers 5 has all in ``rope_parameters``; files
of 2023 say ``type`` for ``rope_type``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from llmos.models.checks import check_positive, is_a, unsupported, wrong

NUMBER = (int, float)


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Every position is divided by ``factor`` (Chen et al., arXiv 2306.15595)."""

    kind: ClassVar[str] = "linear"
    factor: float

    def __post_init__(self) -> None:
        check_positive("rope_scaling.factor", self.factor, NUMBER)


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """How Llama 3.1 and later stretch rotary embeddings beyond ``original_max_position``.

    Wavelengths above original_max_position / low_freq_factor grow by ``factor``, those below
    original_max_position / high_freq_factor stay, those between are interpolated.
    """

    kind: ClassVar[str] = "llama3"
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_positive(f"rope_scaling.{field.name}", getattr(self, field.name), NUMBER)
        if self.high_freq_factor <= self.low_freq_factor:
            found = f"{self.high_freq_factor} and {self.low_freq_factor}"
            raise wrong("rope_scaling.high_freq_factor", found, "more than low_freq_factor")


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (Peng et al., arXiv 2309.00071): frequencies that turn less than ``beta_slow`` times within
    ``original_max_position`` are divided by ``factor``, those that turn more than ``beta_fast`` times stay.

    Queries and keys grow by :attr:`magnitude`. ``truncate``: the bounds between are rounded outwards to whole pairs.
    """

    kind: ClassVar[str] = "yarn"
    factor: float
    original_max_position: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        for name in ("factor", "original_max_position", "beta_fast", "beta_slow"):
            check_positive(f"rope_scaling.{name}", getattr(self, name), NUMBER)
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            value = getattr(self, name)
            if value is not None and not (is_a(value, NUMBER) and value >= 0):
                raise wrong(f"rope_scaling.{name}", value, "a number that is not negative")
        if self.beta_fast < self.beta_slow:
            raise wrong("rope_scaling.beta_fast", f"{self.beta_fast} and {self.beta_slow}", "at least beta_slow")
        if not isinstance(self.truncate, bool):
            raise wrong("rope_scaling.truncate", self.truncate, "true or false")

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied by: attention_factor, else what the factor and both mscales give."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._growth(self.mscale) / self._growth(self.mscale_all_dim)
        return self._growth(1.0)

    def _growth(self, mscale: float) -> float:
        """0.1 · mscale · ln(factor) + 1: section 3.4, and DeepSeek's mscale."""
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling

_KINDS: Mapping[str, type[RopeScaling]] = {kind.kind: kind for kind in (LinearScaling, Llama3Scaling, YarnScaling)}
_SPELLED = {"original_max_position": "original_max_position_embeddings"}
"""Where config.json has another name."""


def rope_from_hf(found: Mapping[str, Any], max_position: int) -> tuple[float, RopeScaling | None]:
    """``rope_theta`` and the scaling that a config.json means. Raises ModelError for what is not supported.

    ``max_position`` is the original context of a file that does not name one, as in transformers.
    """
    rope = _merged(found)
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = _or(rope.get("rope_theta"), 10000.0)
    if kind == "default":
        return theta, None
    if kind not in _KINDS:
        raise unsupported("rope_scaling.rope_type", kind, f"{', '.join(_KINDS)} or default")
    original = _or(found.get("original_max_position_embeddings"), rope.get("original_max_position_embeddings"))
    rope["original_max_position_embeddings"] = _or(original, max_position)
    return theta, _KINDS[kind](**_fields(_KINDS[kind], rope))


def scaling_to_hf(scaling: RopeScaling) -> dict[str, Any]:
    """``rope_scaling`` of config.json, as transformers 4 spells it; 5 reads it too."""
    said = {name: value for name, value in dataclasses.asdict(scaling).items() if value is not None}
    return {"rope_type": scaling.kind, **{_SPELLED.get(name, name): value for name, value in said.items()}}


def _merged(found: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding's parameters in one dict."""
    parts: dict[str, Any] = {name: found[name] for name in ("rope_theta", "partial_rotary_factor") if name in found}
    for name in ("rope_scaling", "rope_parameters"):
        part = found.get(name)
        if part is not None and not isinstance(part, Mapping):
            raise wrong(name, json.dumps(part, default=str), "an object")
        if nested := [key for key, value in (part or {}).items() if isinstance(value, Mapping)]:
            raise unsupported(name, f"an object for {', '.join(nested)}", "one for all layers")
        parts |= part or {}
    if parts.get("partial_rotary_factor") not in (None, 1):
        raise unsupported("partial_rotary_factor", parts["partial_rotary_factor"], "1")
    return parts


def _fields(kind: type[RopeScaling], rope: Mapping[str, Any]) -> dict[str, Any]:
    """What ``rope`` says of each field of ``kind``. Raises ModelError, by config.json's name, for one it lacks."""
    found = {field.name: rope.get(_SPELLED.get(field.name, field.name)) for field in dataclasses.fields(kind)}
    for field in dataclasses.fields(kind):
        if found[field.name] is None and field.default is dataclasses.MISSING:
            raise wrong(f"rope_scaling.{_SPELLED.get(field.name, field.name)}", None, "a positive number")
    return {name: value for name, value in found.items() if value is not None}


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
