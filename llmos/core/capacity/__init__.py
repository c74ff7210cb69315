"""How much memory and time a model takes on which machines: the one model of both, for specs, plans and estimates."""

from llmos.core.capacity.demand import Demand
from llmos.core.capacity.hardware import KINDS, Hardware, calibrated, hardware
from llmos.core.capacity.memory import Memory, serving_memory, training_memory
from llmos.core.capacity.meshes import (
    USABLE,
    Candidate,
    candidates,
    fits,
    largest_micro_batch,
    meshes,
    obstacle,
    recommend,
    refusal,
    would_fit,
)
from llmos.core.capacity.serving import WEIGHTS, Load, Serving, serve
from llmos.core.capacity.settings import (
    BLOCK_ATTENTION_TOKENS,
    CHECKPOINTING,
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
    Mesh,
    Training,
)
from llmos.core.capacity.shape import SIZES, ModelShape, is_size, shape_of_size
from llmos.core.capacity.time import StepTime, bubble_fraction, step_time

__all__ = [
    "BLOCK_ATTENTION_TOKENS",
    "CHECKPOINTING",
    "KINDS",
    "OPTIMIZERS",
    "PRECISIONS",
    "SCHEDULES",
    "SIZES",
    "USABLE",
    "WEIGHTS",
    "Candidate",
    "Demand",
    "Hardware",
    "Load",
    "Memory",
    "Mesh",
    "ModelShape",
    "Serving",
    "StepTime",
    "Training",
    "bubble_fraction",
    "calibrated",
    "candidates",
    "fits",
    "hardware",
    "is_size",
    "largest_micro_batch",
    "meshes",
    "obstacle",
    "recommend",
    "refusal",
    "serve",
    "serving_memory",
    "shape_of_size",
    "step_time",
    "training_memory",
    "would_fit",
]
