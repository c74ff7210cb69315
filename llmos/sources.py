"""The forms in which a person hands over a spec – file, YAML text, dict, Python object – and changes made on the way.

Relative paths in a spec are made absolute here, where they mean something: the cluster's processes run elsewhere. In a
file they are relative to the file's directory (so it means the same from wherever it is submitted), otherwise to the
current one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from llmos.errors import SpecError, UsageError
from llmos.spec import Job, Service, Spec, Tenant, TrainFunction, TrainJob, load, load_file, parse, to_dict
from llmos.spec.data import is_uri
from llmos.spec.nodes import read as read_yaml

J = TypeVar("J", bound=Job)

Source = Spec | Mapping[str, Any] | Path | str


def specs(source: Source) -> list[Spec]:
    """The specs of ``source``. A string is YAML text if it has several lines, else the path of a file.

    Raises SpecError with every problem, NotFoundError or UsageError for a file that cannot be read.
    """
    if isinstance(source, str) and "\n" not in source.strip():
        source = Path(source)
    match source:
        case TrainJob() | TrainFunction() | Service() | Tenant():
            return [anchored(source, Path.cwd())]
        case str():
            return [anchored(spec, Path.cwd()) for spec in load(source, source="spec")]
        case Path():
            path = source.expanduser()
            return [anchored(spec, path.absolute().parent) for spec in load_file(path)]
        case Mapping():
            return [anchored(parse(source), Path.cwd())]
    raise UsageError(f"cannot read a spec from {type(source).__name__}: expected a spec, a dict, a path or YAML text")


def one(source: Source, *kinds: str) -> dict[str, Any]:
    """The one spec of ``source`` as JSON. Raises UsageError if there are several or it is not of one of ``kinds``."""
    found = specs(source)
    if len(found) != 1 or found[0].kind not in kinds:
        what = f"expected exactly one {' or '.join(kinds)}, found {', '.join(spec.kind for spec in found)}"
        hint = "submit() takes a TrainJob or TrainFunction, serve() a Service, put_tenant() a Tenant"
        raise UsageError(what, hint=hint)
    return to_dict(found[0])


def anchored(spec: Spec, base: Path) -> Spec:
    """``spec`` with every path of it absolute; relative ones are taken from ``base``."""
    if isinstance(spec, Service | Tenant):
        return spec
    if isinstance(spec, TrainFunction):
        if spec.function.path is None:
            return spec
        path = _anchored_path(base, spec.function.path)
        return spec.model_copy(update={"function": spec.function.model_copy(update={"path": path})})
    update: dict[str, object] = {"data": spec.data.with_paths(partial(_anchored_path, base))}
    if spec.model.config is not None:
        config = str(base / Path(spec.model.config).expanduser())
        update["model"] = spec.model.model_copy(update={"config": config})
    return spec.model_copy(update=update)


def _anchored_path(base: Path, path: str) -> str:
    return path if is_uri(path) else str(base / Path(path).expanduser())


def override(spec: J, settings: Sequence[str]) -> J:
    """``spec`` with each ``FIELD=VALUE`` of ``settings`` applied, as in ``optimizer.learning_rate=3e-4``.

    Values are YAML. Fields the spec left to their defaults follow the new values. Raises UsageError or SpecError.
    """
    written: dict[str, Any] = {"kind": spec.kind, **spec.model_dump(mode="json", exclude_unset=True)}
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals or not field.strip():
            raise UsageError(
                f"`--set {field[:80]}{equals}`: expected FIELD=VALUE",
                hint="for example --set optimizer.learning_rate=3e-4",
                param="--set",
            )
        *parents, last = field.strip().split(".")
        target = written
        for parent in parents:
            inner = target.get(parent)
            target[parent] = target = dict(inner) if isinstance(inner, Mapping) else {}
        target[last] = _value(field.strip(), text)
    changed = parse(written, source=f"{spec.name} with --set")
    assert isinstance(changed, type(spec))
    return changed


def _value(field: str, text: str) -> Any:
    """The value of ``text``, which no error shows: it may be a password."""
    documents = list(read_yaml(text))
    problems = [message for document in documents for _, message in document.problems]
    if len(documents) > 1:
        problems.append(f"expected one value, found {len(documents)}")
    if problems:
        raise SpecError([f"`--set {field}`: {problem}" for problem in problems], source="--set")
    return documents[0].value if documents else None
