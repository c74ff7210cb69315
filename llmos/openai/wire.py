"""What all models of requests have in common: no field is unknown, none is converted, none is ignored silently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (None,),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "store": (None, False),
    "suffix": (None, ""),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
"""Fields that are not supported, and what they may say: the values that ask for nothing."""

Unsupported = Annotated[Any, Field(default=None, description="not supported: leave it out")]
Hint = Annotated[Any, Field(default=None, description="accepted; changes nothing")]


class Wire(BaseModel):
    """A part of a request."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    @field_validator(*_NEUTRAL, mode="before", check_fields=False)
    @classmethod
    def _refuse(cls, value: Any, info: ValidationInfo) -> Any:
        if value not in _NEUTRAL[str(info.field_name)]:
            raise ValueError("is not supported: leave it out")
        return value
