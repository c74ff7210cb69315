"""What a run starts from: its data, its model, and what makes two runs the same."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch

from llmos.errors import DataError, UsageError
from llmos.models import ModelConfig, Tokenizer, Transformer, weights
from llmos.parallel.world import World
from llmos.spec import PRESETS, Job, TrainJob
from llmos.spec.load import to_dict
from llmos.train import data, lora
from llmos.train.data import Corpus
from llmos.train.work import Work, here

LARGE_BYTES = 10**9
"""From here on ``data.tokenize: auto`` asks the cluster. One core of an AMD EPYC encodes this much in minutes."""

_MALLOC_OPTIONS = {-1: 2**31 - 1, -3: 2**25}
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD (malloc.h): give memory back to the kernel never, and only of more than 32 MiB,
glibc's limit. With its defaults each step asks for it again, and a tenth of the time goes into page faults."""


def prepare_corpus(job: TrainJob, data_dir: Path, base_model: Path | None, world: World, report: Any) -> Corpus:
    """The job's corpus, made by rank 0 unless it is there. Raises NotFoundError or DataError on every rank."""

    def make() -> str:
        tokenizer = Tokenizer.load(base_model) if base_model else None
        corpus = data.prepare(
            job.data.mixture,
            chats=job.objective == "sft",
            unusable=job.data.unusable,
            vocab_size=job.data.vocab_size,
            validation_fraction=job.data.validation_fraction,
            data_dir=data_dir,
            tokenizer=tokenizer,
            report=report,
            work_for=partial(_work, job, report),
        )
        return str(corpus.directory)

    return Corpus.load(Path(world.from_first(make)))


def build_model(job: TrainJob, corpus: Corpus, base_model: Path | None) -> Transformer:
    """The model before the first step, in fp32 on the CPU: the registered one, or fresh weights that ``job.seed``
    determines. Every rank makes the same and keeps its part, so weights do not depend on the mesh or the device.

    Raises ModelError for a directory that does not hold a model, UsageError when the sequence does not fit it, and
    DataError when a token of the corpus does not.
    """
    if base_model:
        model = weights.load_model(base_model, dtype=torch.float32)
    else:
        tokenizer = corpus.tokenizer()
        config = dataclasses.replace(
            shape(job),
            vocab_size=corpus.vocab_size,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
        )
        torch.manual_seed(job.seed)
        model = Transformer(config)
    if corpus.vocab_size > model.config.vocab_size:
        have = f"the corpus has tokens up to {corpus.vocab_size - 1:,}"
        raise DataError(f"{have}: the model's vocabulary is {model.config.vocab_size:,}", param="model")
    if job.sequence_length > model.config.max_position:
        limit = f"the model is made for at most {model.config.max_position}"
        raise UsageError(f"`sequence_length: {job.sequence_length}` is too long: {limit}", param="sequence_length")
    if job.lora:
        lora.add_adapters(model, job.lora, job.seed)
    return model.train()


def _work(job: TrainJob, report: Any, size_bytes: int) -> Work:
    """Who tokenizes so many bytes: this process, or the cluster that it is part of.

    Raises UsageError when the job asks for Ray and there is none.
    """
    asked = job.data.tokenize == "ray"
    if not asked and (job.data.tokenize == "local" or size_bytes < LARGE_BYTES):
        return here(report)
    if sys.modules.get("ray"):  # a process that is part of a cluster has loaded it long ago; nobody else needs it
        ray_data = import_module("llmos.train.ray_data")
        if ray_data.is_on_cluster():
            return cast(Work, ray_data.on_ray(report))
    if asked:
        what = "`data.tokenize: ray` needs a Ray cluster: there is none here"
        hint = "Submit the job to a cluster, or say `tokenize: local`."
        raise UsageError(what, hint=hint, param="data.tokenize")
    return here(report)


def recipe(job: TrainJob, corpus: Corpus, model: Transformer) -> dict[str, Any]:
    """What determines the weights, whatever machines train them (JSON). A checkpoint is continued by the same only."""
    spec = to_dict(job)
    names = ("optimizer", "steps", "batch_size", "sequence_length", "seed", "objective")
    return {
        "model": {**spec["model"], **model.config.to_hf()},
        "data": corpus.digest,
        "weights": [source.weight for source in job.data.mixture],
        "masks_documents": job.masks_documents,
        "lora": spec.get("lora"),
        **{name: spec[name] for name in names},
    }


def set_process(job: Job) -> None:
    """Compute with as many threads as the environment says, else as the job reserves: more would fight over cores.

    And keep the memory that tensors free for those of the next step.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or max(1, int(job.resources.cpus))))
    if tune := getattr(ctypes.CDLL(None), "mallopt", None):  # glibc's
        for option, value in _MALLOC_OPTIONS.items():
            tune(option, value)


def shape(job: TrainJob) -> ModelConfig:
    """The shape the job names; its vocabulary is still to be set."""
    if job.model.preset:
        return ModelConfig(vocab_size=job.data.vocab_size, **dataclasses.asdict(PRESETS[job.model.preset]))
    return ModelConfig.load(Path(str(job.model.config)))
