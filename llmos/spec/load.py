"""Text, files and dictionaries in; validated specs out, or one SpecError that holds every problem at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from llmos.errors import NotFoundError, SpecError, UsageError
from llmos.spec.nodes import MAX_CHARACTERS, Dumper, read
from llmos.spec.problems import Loc, explain, found, nearest
from llmos.spec.service import Service
from llmos.spec.tenant import Tenant
from llmos.spec.train_function import TrainFunction
from llmos.spec.train_job import TrainJob

Job = TrainJob | TrainFunction
"""What the queue takes."""
Spec = Job | Service | Tenant
KINDS: dict[str, type[Spec]] = {
    "TrainJob": TrainJob,
    "TrainFunction": TrainFunction,
    "Service": Service,
    "Tenant": Tenant,
}


def load(text: str, source: str = "spec.yaml") -> list[Spec]:
    """The specs of a YAML text, one per document, in order. Raises SpecError with every problem of every document."""
    specs: list[Spec] = []
    problems: list[tuple[int, str]] = []
    for document in read(text):
        if document.value is None and not document.problems:
            continue  # nothing between two `---`
        spec, wrong = _check(document.value) if document.value is not None else (None, [])
        problems += document.problems + [(document.line_of(loc), message) for loc, message in wrong]
        if spec is not None:
            specs.append(spec)
    if not specs and not problems:
        problems = [(1, f"nothing here: expected a document that begins with `kind:` ({_kinds()})")]
    if problems:
        unique = dict.fromkeys(sorted(problems, key=lambda problem: problem[0]))
        raise SpecError([f"line {line}: {message}" for line, message in unique], source=source)
    return specs


def load_file(path: str | Path) -> list[Spec]:
    """:func:`load` of a file. Raises NotFoundError, UsageError (unreadable) or SpecError."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(4 * MAX_CHARACTERS + 1)  # a character has at most 4 bytes
        cut = len(data) > 4 * MAX_CHARACTERS  # maybe within a character; too long in any case
        return load(data.decode(errors="replace" if cut else "strict"), source=str(path))
    except FileNotFoundError:
        hint = "Check the path; a spec is a YAML file that begins with `kind:`."
        raise NotFoundError(f"no file `{path}`", hint=hint, param=str(path)) from None
    except UnicodeDecodeError as error:
        message = f"`{path}` is not UTF-8 text (byte {error.start}): expected a YAML file"
        raise UsageError(message, hint="Save it as UTF-8.", param=str(path)) from None
    except OSError as error:
        message = f"cannot read `{path}`: {error.strerror or error}"
        raise UsageError(message, hint="A spec is a readable YAML file.", param=str(path)) from None


def parse(data: object, source: str = "spec") -> Spec:
    """The spec of a dictionary (an HTTP body, a Python literal). Raises SpecError; problems name fields by path."""
    spec, wrong = _check(data)
    if spec is None:
        raise SpecError(list(dict.fromkeys(message for _, message in wrong)), source=source)
    return spec


def to_dict(spec: Spec) -> dict[str, Any]:
    """``spec`` as JSON-able values, defaults filled in: :func:`parse` gives it back."""
    return spec.model_dump(mode="json", exclude_none=True)


def to_yaml(spec: Spec) -> str:
    """``spec`` as a YAML document, defaults filled in: :func:`load` gives it back."""
    return yaml.dump(to_dict(spec), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def digest(spec: Spec) -> str:
    """SHA-256 (hex) of what the spec means: key order, comments and defaults written out make no difference."""
    return hashlib.sha256(json.dumps(to_dict(spec), sort_keys=True).encode()).hexdigest()


def json_schema() -> dict[str, Any]:
    """The JSON Schema of any spec, for editors and for the docs."""
    schema = TypeAdapter[Spec](Annotated[Spec, Field(discriminator="kind")]).json_schema()
    for kind in KINDS:  # in Python the class says it; in a file nothing else does
        schema["$defs"][kind]["required"].insert(0, "kind")
    return schema


def _check(data: object) -> tuple[Spec | None, list[tuple[Loc, str]]]:
    """The spec, or None and everything that is wrong with it."""
    if not isinstance(data, Mapping):
        return None, [((), f"expected a mapping that begins with `kind:`, found {found(data)}")]
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        return None, [(("kind",), _unknown_kind(kind))]
    model = KINDS[kind]
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        return None, explain(error, model, data)


def _unknown_kind(kind: object) -> str:
    if kind is None:
        return f"`kind` is missing: expected {_kinds()}"
    hint = nearest(kind, KINDS) if isinstance(kind, str) else ""
    return f"`kind`: expected {_kinds()}, found {found(kind)}{hint}"


def _kinds() -> str:
    *others, last = (f"`{kind}`" for kind in KINDS)
    return f"{', '.join(others)} or {last}"
