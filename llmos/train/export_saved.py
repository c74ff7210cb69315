"""A checkpoint as a model, at any time: during a job, after it, without it."""

from __future__ import annotations

from pathlib import Path

from llmos.parallel.world import World
from llmos.spec import TrainJob
from llmos.train import checkpoint
from llmos.train.data import Corpus
from llmos.train.export import export_checkpoint, export_dtype, export_model, lineage_of
from llmos.train.lora import merged, trainable
from llmos.train.precision import compute_dtype
from llmos.train.start import build_model


def export_saved(target: Path, path: Path, job: TrainJob, data_dir: Path, base_model: Path | None) -> None:
    """Write the model that ``job`` saved in the checkpoint at ``path`` to the new directory ``target``; adapters are
    merged into ``base_model``. Raises CheckpointError unless it verifies, DataError when its corpus is not there."""
    about, device = checkpoint.verify(path), World.current().device
    metrics = {name: value for name, value in checkpoint.state(path).items() if value is not None}
    corpus = Corpus.load(data_dir / about["recipe"]["data"])
    lineage = lineage_of(job, path.name, corpus, base_model, metrics)
    dtype = export_dtype(compute_dtype(job.precision, device), device)
    if job.lora:  # the checkpoint has the adapters only
        model = build_model(job, corpus, base_model)
        checkpoint.load(path, trainable(model), World())
        export_model(target, merged(model), corpus, dtype, lineage)
    else:
        export_checkpoint(target, path, corpus, dtype, lineage)
