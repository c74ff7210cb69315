"""What is checked when a spec is handed in, so that it fails then and not an hour later."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos.control import functions
from llmos.errors import ForbiddenError, LlmosError, NotFoundError, UsageError
from llmos.layout import Layout
from llmos.models import ModelConfig
from llmos.spec import DEFAULT_TENANT, Function, Job, Service, Tenant, TrainFunction, TrainJob, parse
from llmos.spec.data import is_uri

if TYPE_CHECKING:
    from llmos.control.auth import Key

HEAD = "on the head node"


def job(data: Mapping[str, Any], layout: Layout, where: str = HEAD) -> Job:
    """The job in ``data``, all that it names on this machine there. Raises leaves of ``errors`` that name it.

    ``where`` is what messages call this machine.
    """
    spec = parse(data)
    match spec:
        case TrainJob():
            _check_files(spec, where)
        case TrainFunction():
            _check_function(spec.function, layout, where)
        case _:
            raise UsageError(f"expected a job, found a {spec.kind}", hint="PUT it to /services/<name>", param="spec")
    return spec


def _check_files(spec: TrainJob, where: str) -> None:
    for path in (path for source in spec.data.mixture for path in source.path):
        if not is_uri(path):  # what lies elsewhere is looked for by those who can reach it
            check_there(path, "data.path" if spec.data.path else "data.sources", "text to train on", where)
    if spec.model.config is not None:
        check_there(spec.model.config, "model.config", "a directory with config.json", where)
        ModelConfig.load(spec.model.config)


def _check_function(function: Function, layout: Layout, where: str) -> None:
    if function.sha256 is not None:
        functions.check(function, layout)
    elif function.path is not None:
        module = str(function.call).partition(":")[0].partition(".")[0]
        check_there(function.path, "function.path", f"the directory of module `{module}`", where)


def service(name: str, data: Mapping[str, Any]) -> Service:
    """The Service in ``data``, which must be called ``name``. Raises leaves of ``errors``."""
    spec = parse(data)
    if not isinstance(spec, Service):
        raise UsageError(f"expected a Service, found a {spec.kind}", hint="POST it to /jobs", param="spec")
    _check_name(spec.name, name, "service")
    return spec


def owned(spec: Job, key: Key | None) -> Job:
    """``spec`` as a job of the tenant of ``key``. Who may do everything may name another tenant, and so may whoever
    asks without a key: this very process. Raises ForbiddenError."""
    own = key.tenant if key else DEFAULT_TENANT
    if spec.tenant is None:
        return spec.model_copy(update={"tenant": own})
    if key and spec.tenant != own and not key.allows("admin"):
        raise ForbiddenError(
            f"key {key.id} belongs to tenant `{own}`: it may not submit jobs of tenant `{spec.tenant}`",
            hint="leave `tenant` out, or use a key of that tenant (`llmos keys create NAME --tenant TENANT`)",
            param="tenant",
        )
    return spec


def tenant(name: str, data: Mapping[str, Any]) -> Tenant:
    """The Tenant in ``data``, which must be called ``name``. Raises leaves of ``errors``."""
    spec = parse(data)
    if not isinstance(spec, Tenant):
        raise UsageError(f"expected a Tenant, found a {spec.kind}", param="spec")
    _check_name(spec.name, name, "tenant")
    return spec


def _check_name(name: str, address: str, what: str) -> None:
    if name != address:
        raise UsageError(
            f"the spec is of {what} `{name}`, the address names `{address[:100]}`: expected the same name",
            param="name",
        )


def pinned(spec: TrainJob, ref: str) -> TrainJob:
    """``spec`` starting from exactly the model version ``ref``."""
    return spec.model_copy(update={"model": spec.model.model_copy(update={"ref": ref})})


def check_there(path: str, field: str, expected: str, where: str = HEAD) -> None:
    """Raise UsageError or NotFoundError, naming ``field``, unless the absolute path or glob finds something."""
    if "\0" in path or not Path(path).is_absolute():
        raise UsageError(
            f"`{field}`: {path[:200]!r} is not absolute: expected a path {where}",
            hint="`llmos submit` makes paths absolute by itself",
            param=field,
        )
    try:
        there = Path(path).exists() or any(True for _ in glob.iglob(path, recursive=True))
    except OSError as error:
        raise _missing(path, field, expected, f"{where} ({error.strerror})") from error
    if not there:
        raise _missing(path, field, expected, where)


def _missing(path: str, field: str, expected: str, where: str) -> LlmosError:
    what = "matches nothing" if glob.has_magic(path) else "does not exist"
    return NotFoundError(
        f"`{field}`: `{path[:500]}` {what} {where}: expected {expected}",
        hint="check the path; with several nodes it must lie on storage that all of them mount",
        param=field,
    )
