"""``llmos eval``: how well a model predicts a text, and what it writes. On this machine, without a cluster."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos.control import model_files
from llmos.errors import NotFoundError
from llmos.files import read_json
from llmos.layout import JobDirs, Layout
from llmos.local import base_model, registered
from llmos.spec import Source, TrainJob, parse
from llmos.spec.data import Format

if TYPE_CHECKING:
    from llmos.infer.local import LocalEngine

Report = Callable[[str], None]
Prompt = tuple[str, tuple[int, ...]]
DEFAULT_SEQUENCE = 1024
"""Tokens of a row for a model that does not say how long its sequences were; less if it is made for fewer."""
_CHAT_FILES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Sampling:
    """What to let the model write: after each of ``prompts``, or else after the beginnings of ``count`` documents."""

    prompts: tuple[str, ...] = ()
    count: int = 3
    max_tokens: int = 48
    temperature: float = 0.7
    seed: int = 0


def evaluate(
    model: str,
    paths: Sequence[str],
    layout: Layout,
    report: Report,
    *,
    format: Format = "auto",
    field: str = "text",
    sequence: int | None = None,
    sampling: Sampling,
) -> dict[str, Any]:
    """Measure ``model``: ``name[@version]`` of the state directory, a directory with a model, or one with a checkpoint.

    Returns ``loss`` (nats per token), ``perplexity``, ``bits_per_byte``, ``gzip_bits`` (what gzip -9 needs), the counts
    they are of, and ``samples``. Of chats the assistant's tokens count, as in training. Raises NotFoundError,
    ModelError, CheckpointError, DataError, UsageError.
    """
    from llmos.train.measure import measure, perplexity  # loads torch

    with directory_of(model, layout, report) as directory:
        config, trained = model_files.inspect_decoder(directory), _trained_as(directory)
        chats = format == "chat" or (
            format == "auto" and trained.get("objective") == "sft" and all(p.endswith(_CHAT_FILES) for p in paths)
        )
        length = sequence or min(config.max_position, trained.get("sequence_length", DEFAULT_SEQUENCE))
        source = Source(path=tuple(paths), format="chat" if chats else format, field=field)
        wanted = 0 if sampling.prompts else sampling.count
        found = measure(directory, source, chats=chats, length=length, beginnings=wanted, report=report)
        samples = _samples(directory, found.beginnings, sampling, chats)
    evaluation = found.evaluation
    return {
        **{"model": model, "data": list(paths), "chats": chats, "sequence_length": length},
        **{"documents": found.documents, "tokens": evaluation.tokens, "bytes": found.size_bytes},
        **{"loss": evaluation.loss, "perplexity": perplexity(evaluation.loss)},
        **{"bits_per_byte": evaluation.bits_per_byte, "gzip_bits": found.gzip_bits, "samples": samples},
    }


@contextmanager
def directory_of(model: str, layout: Layout, report: Report) -> Iterator[Path]:
    """The directory of a model in the Hugging Face layout; a checkpoint's lasts as long as the block."""
    path = Path(model).expanduser()
    if (path / "manifest.json").is_file():
        with tempfile.TemporaryDirectory(prefix="llmos-eval-") as temporary:
            report(f"exporting {path}")
            yield _exported(path.absolute(), Path(temporary) / "model", layout)
    elif path.is_dir():
        yield path
    elif "/" in model:
        expected = "a directory with a model (config.json) or a checkpoint (manifest.json), or `name@version`"
        raise NotFoundError(f"no directory `{model[:200]}`: expected {expected}", hint="Check the path.", param="MODEL")
    else:
        yield registered(model, layout)


def _exported(path: Path, target: Path, layout: Layout) -> Path:
    """The model of the checkpoint at ``path``, which lies where its job has put it."""
    from llmos.train.export_saved import export_saved

    dirs = JobDirs(path.parents[1])
    spec = read_json(dirs.spec)
    if spec is None:
        hint = "Name the checkpoint where it was saved: STATE/jobs/JOB/checkpoints/step-N."
        raise NotFoundError(f"there is no {dirs.spec}: expected the spec of the job", hint=hint, param="MODEL")
    job = parse(spec)
    assert isinstance(job, TrainJob)
    home = Layout(path.parents[3])
    export_saved(target, path, job, home.data, base_model(job, home if home.data.is_dir() else layout))
    return target


def _trained_as(directory: Path) -> dict[str, Any]:
    """The spec that the model, or the one it was compressed from, was trained by, if it says so."""
    lineage = read_json(directory / "lineage.json")
    lineage = lineage.get("original", lineage) if isinstance(lineage, dict) else None
    spec = lineage.get("spec") if isinstance(lineage, dict) else None
    return spec if isinstance(spec, dict) else {}


def _samples(directory: Path, beginnings: Sequence[Prompt], sampling: Sampling, chats: bool) -> list[dict[str, str]]:
    """What the model writes after each prompt."""
    from llmos.infer.local import LocalEngine

    if not (sampling.prompts or beginnings):
        return []
    with closing(LocalEngine(directory)) as engine:
        prompts = beginnings or [(text, _tokens(engine, text, chats)) for text in sampling.prompts]
        return asyncio.run(_written(engine, prompts, sampling))


def _tokens(engine: LocalEngine, text: str, chats: bool) -> tuple[int, ...]:
    """The tokens of a prompt; an empty one begins a document."""
    tokenizer = engine.tokenizer
    if chats:
        return tuple(tokenizer.encode_chat([{"role": "user", "content": text}]))
    begin = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    return tuple(tokenizer.encode(text, add_special_tokens=True) or [begin])


async def _written(engine: LocalEngine, prompts: Sequence[Prompt], sampling: Sampling) -> list[dict[str, str]]:
    from llmos.infer.request import GenerationRequest, SamplingParams

    params = SamplingParams(sampling.max_tokens, sampling.temperature, top_p=0.95, seed=sampling.seed)

    async def one(number: int, tokens: tuple[int, ...]) -> str:
        return "".join([event.text async for event in engine.generate(GenerationRequest(str(number), tokens, params))])

    texts = await asyncio.gather(*(one(number, tokens) for number, (_, tokens) in enumerate(prompts)))
    return [{"prompt": prompt, "completion": text} for (prompt, _), text in zip(prompts, texts, strict=True)]
