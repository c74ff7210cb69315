"""The trained model as others read it: the Hugging Face layout, with its lineage, whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmos import __version__
from llmos.errors import ConflictError
from llmos.files import read_json, sync_directory, write_json
from llmos.models import ModelConfig, Transformer, weights
from llmos.spec import TrainJob, digest
from llmos.spec.load import to_dict
from llmos.train import shards
from llmos.train.checkpoint import is_parameter, verify
from llmos.train.data import Corpus

LINEAGE = "lineage.json"


def finished(export: Path, job: TrainJob) -> dict[str, float] | None:
    """The metrics of the model in ``export``; None when there is none. Raises ConflictError for anything else there."""
    lineage = read_json(export / LINEAGE)
    if lineage is None:
        if export.exists():
            raise ConflictError(f"{export} exists without {LINEAGE}: expected an exported model", hint="Move it away.")
        return None
    if lineage["spec_digest"] != digest(job):
        raise ConflictError(
            f"{export} holds a model trained from another spec (digest {lineage['spec_digest'][:12]}, expected "
            f"{digest(job)[:12]})",
            hint=f"Delete {export.parent} to start over, or give the job another name.",
        )
    return dict(lineage["metrics"])


def export_model(
    export: Path, model: Transformer, corpus: Corpus, dtype: torch.dtype, lineage: Mapping[str, Any]
) -> None:
    """Write config.json, model.safetensors (``dtype``), the tokenizer and lineage.json to ``export`` in one step."""
    with _whole_or_not(export) as directory:
        weights.save_model(model, directory, dtype=dtype)
        corpus.tokenizer().save(directory)
        write_json(directory / LINEAGE, lineage)


def export_checkpoint(export: Path, path: Path, corpus: Corpus, dtype: torch.dtype, lineage: Mapping[str, Any]) -> None:
    """:func:`export_model` of the model in the checkpoint at ``path``, whatever mesh wrote it.

    No more than one file of the result is in memory at a time. Raises CheckpointError unless the checkpoint verifies.
    """
    config = ModelConfig.from_hf(verify(path)["recipe"]["model"])
    forms = {name: form for name, form in shards.describe(path).items() if is_parameter(name)}

    def read(names: Iterable[str]) -> dict[str, Tensor]:
        tensors = {name: torch.empty_like(forms[name], device="cpu") for name in names}
        shards.read(path, tensors)
        return tensors

    with _whole_or_not(export) as directory:
        weights.save_weights(config, forms, read, directory, dtype)
        corpus.tokenizer().save(directory)
        write_json(directory / LINEAGE, lineage)


@contextmanager
def _whole_or_not(export: Path) -> Iterator[Path]:
    """A directory that becomes ``export``, durable, once it is filled. What an export that died left behind goes."""
    export.parent.mkdir(parents=True, exist_ok=True)
    for leftover in export.parent.glob(f".{export.name}-*"):
        shutil.rmtree(leftover)
    temporary = Path(tempfile.mkdtemp(dir=export.parent, prefix=f".{export.name}-"))
    yield temporary
    for path in temporary.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    temporary.chmod(0o755)
    sync_directory(temporary)
    temporary.rename(export)
    sync_directory(export.parent)


def export_dtype(compute: torch.dtype, device: torch.device) -> torch.dtype:
    """The type of exported weights: fp32 from CPUs, the type of the products from GPUs.

    fp32 keeps exactly what was trained, and CPU engines compute in it. A model trained in bf16 on a GPU is served on
    one, where bf16 halves the memory and is what its products were rounded to all along.
    """
    return compute if device.type == "cuda" else torch.float32


def lineage_of(
    job: TrainJob, attempt: str, corpus: Corpus, base_model: Path | None, metrics: Mapping[str, float]
) -> dict[str, Any]:
    """Where a model comes from (JSON)."""
    return {
        "job": job.name,
        "attempt": attempt,
        "spec": to_dict(job),
        "spec_digest": digest(job),
        "data": {
            "digest": corpus.digest,
            "paths": [path for source in job.data.mixture for path in source.path],
            "tokens": corpus.train_tokens,
            "validation_tokens": corpus.validation_tokens,
        },
        "base_model": job.model.ref if base_model else None,
        "code_version": {"llmos": __version__, "torch": torch.__version__},
        "metrics": dict(metrics),
    }
