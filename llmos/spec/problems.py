"""Turns pydantic's errors into sentences: what was found, what was expected, what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, get_args

from pydantic import ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from llmos.spec.base import AUTO_TAG, MESH_TAG, Strict

Loc = tuple[str | int, ...]
"""A place in a spec: the keys and list positions that lead to it."""

_NOT_IN_SPEC = frozenset({MESH_TAG, AUTO_TAG, "[key]"})
_UNSHOWN = frozenset({"env", "secrets"})  # values here may be confidential: name their type only

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_too_short": "some text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping of fields",
    "invalid_key": "a key that is text",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
}
_CLOSE = 0.7  # of difflib's ratio: high enough that no unrelated field is suggested


def nearest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean `x`?"`` for the known word most like ``word``, else the empty string."""
    folded = {k.lower(): k for k in known}
    close = get_close_matches(word.lower(), folded, n=1, cutoff=_CLOSE)
    return f"; did you mean `{folded[close[0]]}`?" if close else ""


def explain(error: ValidationError, kind: type[Strict], data: Mapping[str, Any]) -> list[tuple[Loc, str]]:
    """Everything wrong with ``data``: where in the spec, and the sentence that says what."""
    problems = []
    for detail in error.errors(include_url=False):
        if detail["type"] not in ("conflict", "default_factory_not_called"):  # the latter only follows from others
            loc = tuple(part for part in detail["loc"] if part not in _NOT_IN_SPEC)
            problems.append((loc, _sentence(detail, loc, kind)))
    return problems + list(_conflicts(kind, data, ()))


def field_name(loc: Loc) -> str:
    """``("data", "path", 1)`` as people write it: ``data.path[1]``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def found(value: object, *, shown: bool = True) -> str:
    """A few words for a value that was not expected."""
    match value:
        case None:
            return "nothing"
        case str():
            return f"the text {value[:60]!r}" if shown else "text"
        case bool() | int() | float():
            return f"`{str(value).lower()[:60]}`" if shown else "a number or truth value"
        case Sequence():
            return "a list"
        case _:
            return "a mapping"


def _conflicts(model: type[Strict], data: Mapping[str, Any], loc: Loc) -> Iterator[tuple[Loc, str]]:
    """What the rules of ``model`` and of the models in it find. Pydantic stops before the rules at the first field that
    cannot be read; here each rule runs whose fields can."""
    for name, child in _children(model):
        if isinstance(data.get(name), Mapping):
            yield from _conflicts(child, data[name], (*loc, name))
    readable = _readable(model, data)
    for rule in model.rules:
        try:
            found = list(rule(readable))
        except AttributeError:  # the rule needs a field that could not be read
            continue
        yield from (((*loc, *where), f"`{field_name(loc)}`: {text}" if loc else text) for where, text in found)


def _readable(model: type[Strict], data: Mapping[str, Any]) -> Strict:
    """``model`` with the valid fields of ``data`` and defaults for absent ones; unreadable fields are no attributes."""
    values, unreadable = {}, []
    for name, field in _fields(model).items():
        if name in data:
            # the name is there because Annotated wants at least one annotation; pydantic skips those it does not know
            form: Any = (Annotated[(field.annotation, name, *field.metadata)], ...)
            alone = create_model("alone", __base__=Strict, value=form)
            try:
                values[name] = alone.model_validate({"value": data[name]}).__dict__["value"]
            except ValidationError:
                unreadable.append(name)
    partial = model.model_construct(**values)
    for name in unreadable:
        partial.__dict__.pop(name, None)
    return partial


def _sentence(detail: ErrorDetails, loc: Loc, kind: type[Strict]) -> str:
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_field(loc, kind)
        case "missing":
            return _missing_field(loc, kind)
        case "value_error":
            return f"`{field_name(loc)}`: {detail['ctx']['error']}"
        case _:
            return _wrong_value(detail, loc)


def _wrong_value(detail: ErrorDetails, loc: Loc) -> str:
    context, value = detail.get("ctx", {}), detail["input"]
    form = _EXPECTED.get(detail["type"])
    expected = form.format(**context) if form else detail["msg"]
    hint = nearest(value, re.findall(r"'([^']+)'", expected)) if isinstance(value, str) else ""
    shown = not (loc and loc[0] in _UNSHOWN)
    actual = context.get("actual_length", found(value, shown=shown))
    return f"`{field_name(loc)}`: expected {expected}, found {actual}{hint}"


def _unknown_field(loc: Loc, kind: type[Strict]) -> str:
    key, owner = str(loc[-1]), _model_at(kind, loc[:-1])
    parent = field_name(loc[:-1]) or kind.__name__
    hint = nearest(key, _fields(owner)) or _nearest_within(key, owner)
    return f"`{key[:80]}` is not a field of `{parent}`{hint or '; its fields are ' + ', '.join(_fields(owner))}"


def _nearest_within(key: str, owner: type[Strict]) -> str:
    """:func:`nearest` among the fields of the models in ``owner``: what is one level too high."""
    fields = [(field, f"{name}.{field}") for name, model in _children(owner) for field in _fields(model)]
    close = get_close_matches(key.lower(), {field for field, _ in fields}, n=1, cutoff=_CLOSE)
    paths = " or ".join(f"`{path}`" for field, path in fields if field in close)
    return f"; did you mean {paths}?" if paths else ""


def _missing_field(loc: Loc, kind: type[Strict]) -> str:
    if isinstance(loc[-1], int):
        return f"`{field_name(loc)}` is missing: expected an item there"
    parent = field_name(loc[:-1]) or kind.__name__
    description = _fields(_model_at(kind, loc[:-1]))[loc[-1]].description
    return f"`{loc[-1]}` is missing from `{parent}` ({description})"


def _model_at(kind: type[Strict], loc: Loc) -> type[Strict]:
    """The model whose fields are written at ``loc``."""
    for part in loc:
        kind = dict(_children(kind)).get(str(part), kind)
    return kind


def _fields(model: type[Strict]) -> dict[str, FieldInfo]:
    """The fields of ``model`` by the names they are written with."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _children(model: type[Strict]) -> Iterator[tuple[str, type[Strict]]]:
    for name, field in _fields(model).items():
        for candidate in _models_in(field.annotation):
            yield name, candidate


def _models_in(annotation: Any) -> Iterator[type[Strict]]:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
