"""What a user writes: one pydantic model per kind. The same model is YAML, HTTP body and Python."""

from llmos.spec.base import Mesh, Resources
from llmos.spec.load import KINDS, Spec, digest, json_schema, load, load_file, parse, to_dict, to_yaml
from llmos.spec.presets import PRESETS, Preset
from llmos.spec.service import Replicas, Service
from llmos.spec.train_job import CheckpointPolicy, Data, ModelSource, Optimizer, Output, TrainJob, Workers

__all__ = [
    "KINDS",
    "PRESETS",
    "CheckpointPolicy",
    "Data",
    "Mesh",
    "ModelSource",
    "Optimizer",
    "Output",
    "Preset",
    "Replicas",
    "Resources",
    "Service",
    "Spec",
    "TrainJob",
    "Workers",
    "digest",
    "json_schema",
    "load",
    "load_file",
    "parse",
    "to_dict",
    "to_yaml",
]
