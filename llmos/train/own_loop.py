"""A user's own loop on one rank of a gang: how its function gets here, is called, and ends."""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import torch.distributed as dist

from llmos.errors import DataError, UsageError
from llmos.parallel.world import World, others_alive
from llmos.spec import Function
from llmos.train import start
from llmos.train.context import Context
from llmos.train.run import FunctionRun, Result

Loop = Callable[[Context], object]


def call(run: FunctionRun, world: World) -> Result:
    """Call the function of ``run.job`` with its context; returns on every rank once it has returned on this one.

    Rank 0 leaves ``run.attempt.outcome``: yielded if the job was asked to end before its last step, else succeeded.
    Raises leaves of LlmosError, and whatever the function raises.
    """
    start.set_process(run.job)
    function = load(run)
    with _process_group(world), closing(Context(run, world)) as context:
        with others_alive():
            function(context)
        result = context.result()
    world.from_first(partial(result.write, run.attempt.outcome))
    return result


def load(run: FunctionRun) -> Loop:
    """The function of ``run.job``. Raises UsageError when it is not there or cannot be loaded here."""
    function = run.job.function
    found = _named(function) if run.code is None else _sent(run.code.read_bytes(), str(function.sha256))
    if not callable(found):
        what = f"`{function.call or 'what was sent'}` is of type {type(found).__name__}: expected a function"
        raise UsageError(f"{what} that takes a context", param="function")
    loop: Loop = found
    return loop


def _named(function: Function) -> Any:
    if function.path is not None and function.path not in sys.path:
        sys.path.insert(0, function.path)
    module, _, name = str(function.call).partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        what = f"cannot import `{function.call}`: {error}"
        hint = "Say in `function.path` where the module is, on storage that all nodes mount."
        raise UsageError(what, hint=hint, param="function.call") from error


def _sent(content: bytes, sha256: str) -> Any:
    """What a user has sent. Only this process, which runs that user's code in any case, ever loads it."""
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise DataError(f"the function that was sent has SHA-256 {found}: expected {sha256}", hint="Submit it again.")
    try:
        return pickle.loads(content)  # noqa: S301 - see above
    except Exception as error:
        what = f"the function that was sent cannot be loaded here: {type(error).__name__}: {error}"
        hint = (
            "What it imports must be installed on the cluster, in the versions that are here; or use `function.call`."
        )
        raise UsageError(what, hint=hint, param="function") from error


@contextmanager
def _process_group(world: World) -> Iterator[None]:
    """A default process group, also for a rank that is alone: so functions need not ask."""
    if dist.is_initialized():
        yield
        return
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
