"""llmos: an operating system for language models on one Ray cluster.

    import llmos
    cluster = llmos.connect()

Names are loaded when they are first used, so that importing llmos costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmos.client import Client, connect
    from llmos.control.estimate import estimate
    from llmos.errors import (
        AuthError,
        CapacityError,
        CheckpointError,
        ClusterError,
        ConflictError,
        ContextLengthError,
        DataError,
        DeadlineError,
        DivergenceError,
        EngineError,
        ForbiddenError,
        LlmosError,
        ModelError,
        NotFoundError,
        OutOfMemoryError,
        RateLimitError,
        SpecError,
        TrainingError,
        UnavailableError,
        UnsupportedModelError,
        UsageError,
        WorkerLost,
    )
    from llmos.functions import train_function
    from llmos.spec import (
        Data,
        Function,
        Gang,
        Limits,
        Lora,
        Mesh,
        ModelSource,
        Optimizer,
        Output,
        Packing,
        Quota,
        Replicas,
        Resources,
        Service,
        Source,
        Tenant,
        TrainFunction,
        TrainJob,
        Workers,
    )
    from llmos.views import EventView, JobView, KeyView, MetricsRow, ModelView, ServiceView, TenantView, UsageView

__version__ = "0.1.0"

# cheapest import first
_HOMES = ("llmos.errors", "llmos.views", "llmos.client", "llmos.functions", "llmos.spec", "llmos.control.estimate")

__all__ = [
    "AuthError",
    "CapacityError",
    "CheckpointError",
    "Client",
    "ClusterError",
    "ConflictError",
    "ContextLengthError",
    "Data",
    "DataError",
    "DeadlineError",
    "DivergenceError",
    "EngineError",
    "EventView",
    "ForbiddenError",
    "Function",
    "Gang",
    "JobView",
    "KeyView",
    "Limits",
    "LlmosError",
    "Lora",
    "Mesh",
    "MetricsRow",
    "ModelError",
    "ModelSource",
    "ModelView",
    "NotFoundError",
    "Optimizer",
    "OutOfMemoryError",
    "Output",
    "Packing",
    "Quota",
    "RateLimitError",
    "Replicas",
    "Resources",
    "Service",
    "ServiceView",
    "Source",
    "SpecError",
    "Tenant",
    "TenantView",
    "TrainFunction",
    "TrainJob",
    "TrainingError",
    "UnavailableError",
    "UnsupportedModelError",
    "UsageError",
    "UsageView",
    "WorkerLost",
    "Workers",
    "__version__",
    "connect",
    "estimate",
    "train_function",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in map(import_module, _HOMES):
            if hasattr(home, name):
                return getattr(home, name)
    raise AttributeError(f"module `llmos` has no attribute `{name}`")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
