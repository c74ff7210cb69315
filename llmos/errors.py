"""Every error llmos raises on purpose, in one tree.

    LlmosError                     500  exit 1
    ├── UsageError                 400  exit 2   the caller asked for something that cannot be right
    │   ├── SpecError              422  exit 2   a spec with one or more problems, each with its line
    │   └── ContextLengthError     400  exit 2   a prompt that does not fit the model's context
    ├── AuthError                  401  exit 1   no key, or a key that is not valid
    ├── ForbiddenError             403  exit 1   a valid key without the scope
    ├── NotFoundError              404  exit 1   a job, model, service, key, file or address that does not exist
    ├── ConflictError              409  exit 1   the thing exists, is in use, or is already being changed
    ├── CapacityError              429  exit 1   no room now; ``retry_after_s`` says when to ask again
    │   └── RateLimitError         429  exit 1   a limit of the key, its tenant or the service is reached
    ├── DataError                  422  exit 1   a corpus, file or text that cannot be used
    ├── ModelError                 422  exit 1   a model directory that is missing something, corrupt or unsupported
    │   └── UnsupportedModelError  422  exit 1   a model that is whole, of a kind that llmos does not compute itself
    ├── CheckpointError            500  exit 1   a checkpoint that does not verify
    ├── ClusterError               503  exit 1   the Ray cluster or the control module cannot be reached or started
    ├── WorkerLost                 503  exit 1   a process that did part of the work is gone
    ├── TrainingError              500  exit 1   training that cannot go on
    │   └── DivergenceError        422  exit 1   the loss is no longer a number, or spikes; it would do so again
    ├── OutOfMemoryError           422  exit 1   a rank that needs more memory than there is: it says what would fit
    ├── EngineError                503  exit 1   the inference engine cannot answer
    │   └── UnavailableError       503  exit 1   nobody can answer just now; ``retry_after_s`` says when to ask again
    └── DeadlineError              504  exit 1   what was waited for did not happen in time

A message has three parts: what was wrong, what was expected, what to do. ``hint`` carries the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class LlmosError(Exception):
    """Base of every llmos error: ``message`` says what was wrong and expected, ``hint`` what to do.

    ``param`` names the offending field or argument when there is one (OpenAI's error shape has a place for it).
    """

    http_status = 500
    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", param: str | None = None) -> None:
        super().__init__(message, hint, param)
        self.message = message
        self.hint = hint
        self.param = param

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), dict(self.__dict__))

    @property
    def code(self) -> str:
        """Machine-readable name: ``NotFoundError`` → ``not_found``."""
        name = type(self).__name__.removesuffix("Error")
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")

    def to_json(self) -> dict[str, Any]:
        """For another process, which makes an error of it again with :func:`from_json`."""
        told = {"type": type(self).__name__, "message": self.message, "hint": self.hint, "param": self.param}
        return told | ({"retry_after_s": self.retry_after_s} if hasattr(self, "retry_after_s") else {})


def from_json(error: Mapping[str, Any]) -> LlmosError:
    """The leaf that :meth:`LlmosError.to_json` described."""
    leaf: type[LlmosError] = globals()[str(error["type"])]
    copy = leaf.__new__(leaf)  # a leaf may take other arguments than these three
    LlmosError.__init__(copy, str(error["message"]), hint=error["hint"] or "", param=error["param"])
    if "retry_after_s" in error:
        copy.retry_after_s = float(error["retry_after_s"])  # type: ignore[attr-defined]
    return copy


class UsageError(LlmosError):
    http_status = 400
    exit_code = 2


class SpecError(UsageError):
    """A spec that cannot be accepted. ``problems`` holds every problem found, in the order of their lines."""

    http_status = 422

    def __init__(self, problems: Sequence[str], *, source: str = "spec") -> None:
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        super().__init__(f"{source} has {count}:\n" + "\n".join(f"  {p}" for p in problems))
        self.problems = tuple(problems)
        self.source = source


class ContextLengthError(UsageError): ...


class AuthError(LlmosError):
    http_status = 401


class ForbiddenError(LlmosError):
    http_status = 403


class NotFoundError(LlmosError):
    http_status = 404


class ConflictError(LlmosError):
    http_status = 409


class CapacityError(LlmosError):
    """No room now. ``retry_after_s`` (seconds) goes into the ``Retry-After`` header."""

    http_status = 429

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class RateLimitError(CapacityError):
    """The ``limit`` of whoever asks is reached. ``headers`` say what is left (OpenAI's ``x-ratelimit-*``)."""

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        retry_after_s: float = 1.0,
        limit: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, hint=hint, retry_after_s=retry_after_s)
        self.limit = limit
        self.headers = dict(headers or {})


class DataError(LlmosError):
    http_status = 422


class ModelError(LlmosError):
    http_status = 422


class UnsupportedModelError(ModelError): ...


class CheckpointError(LlmosError): ...


class ClusterError(LlmosError):
    http_status = 503


class WorkerLost(LlmosError):
    http_status = 503


class TrainingError(LlmosError): ...


class DivergenceError(TrainingError):
    http_status = 422


class OutOfMemoryError(LlmosError):
    http_status = 422


class EngineError(LlmosError):
    http_status = 503


class UnavailableError(EngineError):
    """Nobody can answer just now. ``retry_after_s`` (seconds) goes into the ``Retry-After`` header."""

    def __init__(self, message: str, *, hint: str = "", param: str | None = None, retry_after_s: float = 1.0) -> None:
        super().__init__(message, hint=hint, param=param)
        self.retry_after_s = retry_after_s


class DeadlineError(LlmosError):
    http_status = 504


def _rebuild(cls: type[LlmosError], state: dict[str, object]) -> LlmosError:
    """Unpickle without calling ``__init__``: its signature differs from leaf to leaf (errors cross Ray this way)."""
    error = cls.__new__(cls)
    error.__dict__.update(state)
    error.args = (state.get("message"), state.get("hint"), state.get("param"))
    return error
