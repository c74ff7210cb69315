"""``kind: TrainFunction``: a user's own loop, run by the gang of a job with its retries, checkpoints and metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from llmos.spec.base import Conflict, Duration, Mesh, Name, PositiveInt, Resources, Strict, Variable
from llmos.spec.scheduling import After, ExpectedRuntime, Gang, OfTenant, Preemptible, Priority
from llmos.spec.train_job import CheckpointPolicy, Workers, check_secret, env_or_secret
from llmos.spec.watch import Watchdog

_CALL = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PYTHON = re.compile(r"3\.\d{1,3}")


def _check_call(value: str) -> str:
    if not _CALL.fullmatch(value):
        raise ValueError(f"{value[:80]!r} is not a function: expected `module:function`, as in `loop:main`")
    return value


def _check_sha256(value: str) -> str:
    if not _SHA256.fullmatch(value):
        raise ValueError("not a SHA-256: expected 64 digits from 0 to f; `llmos.train_function` writes it")
    return value


def _check_python(value: str) -> str:
    if not _PYTHON.fullmatch(value):
        raise ValueError("not a version of Python: expected such as `3.12`; `llmos.train_function` writes it")
    return value


def _exactly_one(code: Function) -> Iterator[Conflict]:
    given = [name for name in ("call", "sha256") if getattr(code, name) is not None]
    if len(given) != 1:
        yield (), f"expected exactly one of `call` and `sha256`, found {' and '.join(given) or 'none'}"


def _goes_with(code: Function) -> Iterator[Conflict]:
    if code.path is not None and code.call is None:
        yield ("path",), "`path` is where the module of `call` is: expected `call`"
    if (code.python is None) != (code.sha256 is None):
        yield ("python",), "`sha256` and `python` go together: `llmos.train_function` writes both"


class Function(Strict):
    """The function that every worker calls: one with a name, or one that `llmos.train_function` has sent."""

    call: Annotated[str, BeforeValidator(_check_call)] | None = Field(
        default=None, description="`module:function`; it is called with its context"
    )
    path: str | None = Field(
        default=None, min_length=1, description="the directory of the module; without it, it is an installed one"
    )
    sha256: Annotated[str, BeforeValidator(_check_sha256)] | None = Field(
        default=None, description="of a function that was sent"
    )
    python: Annotated[str, BeforeValidator(_check_python)] | None = Field(
        default=None, description="the version of Python that it was sent from"
    )

    rules = (_exactly_one, _goes_with)


def _no_slow_rank(job: TrainFunction) -> Iterator[Conflict]:
    if job.watchdog.slow_rank != Watchdog().slow_rank:
        yield ("watchdog", "slow_rank"), "`slow_rank` needs the loop of a TrainJob, which measures each rank's own work"


class TrainFunction(Strict):
    """A function that every worker of a gang calls: a training loop of the user's own."""

    kind: Literal["TrainFunction"] = "TrainFunction"
    name: Name = Field(description="the job's name")
    function: Function = Field(description="`call`, or what `llmos.train_function` has sent")
    steps: PositiveInt = Field(description="how many steps the function does")
    workers: Workers = Workers()
    resources: Resources = Resources()
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    watchdog: Watchdog = Field(default=Watchdog(), description="a step ends with `report`; watched from the first on")
    env: dict[Variable, str] = Field(default_factory=dict, description="environment variables of the workers")
    secrets: dict[Variable, Annotated[str, BeforeValidator(check_secret)]] = Field(
        default_factory=dict, description="environment variables whose values are read from `env:NAME` or `file:/path`"
    )
    grace: Duration = Field(default=60.0, description="how long it may take to checkpoint and end when it is asked to")
    max_runtime: Duration | None = Field(default=None, description="stop the job after this time, such as 2h")
    retries: int = Field(default=2, ge=0, le=100, description="attempts beyond the first after failures")
    tenant: OfTenant = None
    priority: Priority = 0
    after: After = ()
    expected_runtime: ExpectedRuntime = None
    preemptible: Preemptible = True
    gang: Gang = Gang()

    @property
    def meshes(self) -> tuple[Mesh, ...]:
        """Every mesh the job may run on, the smallest first: how its workers share the work is the function's."""
        return tuple(Mesh(dp=count) for count in range(self.workers.min, self.workers.max + 1))

    @property
    def placed_mesh(self) -> Mesh:
        """The mesh of the fewest workers."""
        return self.meshes[0]

    def on(self, workers: int) -> TrainFunction:
        """The job on exactly so many workers."""
        size = {"min": workers, "max": workers}
        return self.model_copy(update={"workers": self.workers.model_copy(update=size)})

    rules = (_no_slow_rank, env_or_secret)
