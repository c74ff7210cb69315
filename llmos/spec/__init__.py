"""What a user writes: one pydantic model per kind. The same model is YAML, HTTP body and Python."""

from llmos.spec.base import Mesh, Resources
from llmos.spec.data import Data, Packing, Source
from llmos.spec.limits import Limits
from llmos.spec.load import KINDS, Job, Spec, digest, json_schema, load, load_file, parse, to_dict, to_yaml
from llmos.spec.lora import Lora
from llmos.spec.presets import PRESETS, Preset
from llmos.spec.scheduling import DEFAULT_TENANT, Gang
from llmos.spec.service import Canary, Replicas, Service, Slo
from llmos.spec.tenant import Quota, Tenant
from llmos.spec.train_function import Function, TrainFunction
from llmos.spec.train_job import CheckpointPolicy, ModelSource, Optimizer, Output, TrainJob, Workers
from llmos.spec.watch import Anomalies, Watchdog

__all__ = [
    "DEFAULT_TENANT",
    "KINDS",
    "PRESETS",
    "Anomalies",
    "Canary",
    "CheckpointPolicy",
    "Data",
    "Function",
    "Gang",
    "Job",
    "Limits",
    "Lora",
    "Mesh",
    "ModelSource",
    "Optimizer",
    "Output",
    "Packing",
    "Preset",
    "Quota",
    "Replicas",
    "Resources",
    "Service",
    "Slo",
    "Source",
    "Spec",
    "Tenant",
    "TrainFunction",
    "TrainJob",
    "Watchdog",
    "Workers",
    "digest",
    "json_schema",
    "load",
    "load_file",
    "parse",
    "to_dict",
    "to_yaml",
]
