"""How a function of a notebook or a script gets to the cluster: as bytes that only a worker of its own job loads."""

from __future__ import annotations

import base64
import hashlib
import inspect
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from llmos.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from llmos.client import Loop, OnProgress
    from llmos.spec import TrainFunction
    from llmos.views import JobView


@dataclass(frozen=True, slots=True)
class Packed:
    """A function's bytes."""

    content: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def base64(self) -> str:
        return base64.b64encode(self.content).decode()


def train_function(
    function: Loop, *, wait: bool = True, on_progress: OnProgress | None = None, **fields: Any
) -> JobView:
    """:meth:`llmos.Client.train_function` of the cluster that :func:`llmos.connect` finds."""
    from llmos.client import connect

    with connect() as cluster:
        return cluster.train_function(function, wait=wait, on_progress=on_progress, **fields)


def packed_job(function: Loop, fields: Mapping[str, Any]) -> tuple[Packed, TrainFunction]:
    """``function`` as bytes, and the job of ``fields`` that calls it: ``workers`` may be a number, ``name`` is the
    function's unless given. Raises UsageError for what cannot be sent, SpecError for fields that are wrong."""
    from llmos.client_jobs import plain
    from llmos.spec import TrainFunction, parse

    packed = pack(function)
    written: dict[str, Any] = {"kind": "TrainFunction", **{name: plain(value) for name, value in fields.items()}}
    written.setdefault("name", getattr(function, "__name__", "function").strip("_<>").lower())
    if isinstance(workers := written.get("workers"), int) and not isinstance(workers, bool):
        written["workers"] = {"min": workers, "max": workers}
    written["function"] = {"sha256": packed.sha256, "python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    job = parse(written, source="train_function()")
    assert isinstance(job, TrainFunction)
    return packed, job


def pack(function: Any) -> Packed:
    """``function`` with the module-level code around it. Raises UsageError for what cannot be sent.

    What it imports from other modules is imported on the cluster: installed there, or else named in a file.
    """
    from llmos.control.functions import MAX_FUNCTION_BYTES, too_large

    if not callable(function):
        what = f"expected a function that takes a context, found {type(function).__name__}"
        raise UsageError(what, param="function")
    try:
        content = _dumped(function)
    except Exception as error:  # whatever the things that it refers to raise when they are asked for their state
        what = f"the function cannot be sent: {type(error).__name__}: {error}"
        raise UsageError(what, hint="Make in it what it needs, such as files and locks.", param="function") from error
    if len(content) > MAX_FUNCTION_BYTES:
        raise UsageError(too_large(len(content)), hint="Read large data in the function.", param="function")
    return Packed(content)


def _dumped(function: Loop) -> bytes:
    import cloudpickle

    inner: Any = function
    while isinstance(inner, partial):
        inner = inner.func
    with _by_value(inspect.getmodule(inner), cloudpickle):
        return bytes(cloudpickle.dumps(function))


@contextmanager
def _by_value(module: ModuleType | None, cloudpickle: Any) -> Iterator[None]:
    """Have the code of ``module`` travel instead of its name, if the cluster cannot know it."""
    if module is None or module.__name__ not in sys.modules or module.__name__ == "__main__":
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)
