"""What all models of requests have in common: no field is unknown, none is converted, none is ignored silently."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "store": (False,),
}
"""What fields that are not supported may say besides null: the values that ask for nothing."""


def _refuse(value: Any, info: ValidationInfo) -> Any:
    if value is not None and value not in _NEUTRAL.get(str(info.field_name), ()):
        raise ValueError("is not supported: leave it out")
    return value


class _WithoutEffect:
    """Marks a field that is accepted, changes nothing, and is named in the answer's header."""


Unsupported = Annotated[Any, Field(default=None, description="not supported: leave it out"), BeforeValidator(_refuse)]
Label = Annotated[Any, Field(default=None, description="for people")]
Hint = Annotated[
    Any, Field(default=None, description="accepted; changes nothing, as `llmos-ignored-params` says"), _WithoutEffect
]


class Wire(BaseModel):
    """A part of a request."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=(), serialize_by_alias=True)
    """What was read is written as it was read: the front door passes requests on to replicas."""

    def ignored(self) -> set[str]:
        """The dotted names of what was set and has no effect: ``{"verbosity", "messages.name"}``."""
        hints, parts = _fields(type(self))
        given = self.model_fields_set
        found = {name for name in given & hints if getattr(self, name) is not None}
        for name in given & parts:
            for part in _parts(getattr(self, name)):
                if inner := part.ignored():
                    found |= {f"{name}.{one}" for one in inner}
        return found


@cache
def _fields(kind: type[Wire]) -> tuple[frozenset[str], frozenset[str]]:
    """The fields of ``kind`` that are without effect, and those that may hold parts."""
    hints = {name for name, field in kind.model_fields.items() if _WithoutEffect in field.metadata}
    parts = {name for name, field in kind.model_fields.items() if name not in hints and _holds(field.annotation)}
    return frozenset(hints), frozenset(parts)


def _holds(annotation: Any) -> bool:
    """Whether values of this type may be, or have, parts."""
    if isinstance(annotation, type) and issubclass(annotation, Wire):
        return True
    return any(map(_holds, get_args(annotation)))


def _parts(value: Any) -> Iterator[Wire]:
    if isinstance(value, Wire):
        yield value
    elif isinstance(value, list):
        yield from (part for part in value if isinstance(part, Wire))


def all_of(kind: type, values: Any) -> bool:
    """Whether ``values`` is a list of at least one ``kind``, and of nothing else."""
    return isinstance(values, list) and bool(values) and all(type(value) is kind for value in values)
