"""A model measured on text that no job prepared: all of it is held out, in a directory that lasts as long."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llmos.errors import DataError, UsageError
from llmos.models import Tokenizer, Transformer, weights
from llmos.parallel.mesh import RankMesh
from llmos.parallel.model import Layout, SpreadModel
from llmos.parallel.stage import Numerics
from llmos.parallel.world import World
from llmos.spec import Source
from llmos.train import data, encode, holdout
from llmos.train.data import Corpus
from llmos.train.documents import ASSISTANT, Document, Piece, read
from llmos.train.encode import Task
from llmos.train.evaluate import Evaluation, evaluate
from llmos.train.holdout import Census
from llmos.train.loss import cross_entropy_sum
from llmos.train.precision import compute_dtype
from llmos.train.rows import held_out_rows
from llmos.train.source_files import candidates, identified
from llmos.train.step import MICRO_BATCH_TOKENS
from llmos.train.work import here

Report = Callable[[str], None]
PROMPT_TOKENS = 16
"""Of a text's beginning, how much a model is given to go on from."""


@dataclass(frozen=True, slots=True)
class Measured:
    """How well a model predicts a text. ``gzip_bits`` is what ``gzip -9`` needs for each byte of it.

    ``beginnings`` of some documents, as (what people read, tokens): what the model can be asked to go on from.
    """

    evaluation: Evaluation
    documents: int
    size_bytes: int
    gzip_bits: float
    beginnings: tuple[tuple[str, tuple[int, ...]], ...]


def measure(model: Path, source: Source, *, chats: bool, length: int, beginnings: int, report: Report) -> Measured:
    """Measure the model in directory ``model`` on all of ``source``, in rows of ``length`` tokens.

    Every token counts once, as in :func:`llmos.train.evaluate.evaluate`; of ``chats`` the assistant's. Raises
    ModelError, NotFoundError, DataError for text that cannot be used, UsageError when ``length`` is too long.
    """
    tokenizer = Tokenizer.load(model)
    groups = data.pieces_of(identified(candidates(source, chats, report), report, here(report)))
    with tempfile.TemporaryDirectory(prefix="llmos-eval-") as directory:
        tokenizer.save(directory)
        corpus = _held_out(Path(directory), groups, tokenizer, chats, report)
        rows = held_out_rows(corpus, length, report)
        if not rows.count:
            raise DataError("the text is one token only: expected more", hint="Check --data.", param="--data")
        found = evaluate(_spread(model, corpus.vocab_size, length), corpus, rows, length, mask=chats)
    some = itertools.islice(_beginnings(groups, tokenizer), beginnings)
    return Measured(found, corpus.held_out.documents, corpus.validation_bytes, corpus.gzip_bits, tuple(some))


def _held_out(directory: Path, groups: data.Pieces, tokenizer: Tokenizer, chats: bool, report: Report) -> Corpus:
    """The whole text as the held-out part of a corpus that has nothing else. Raises DataError."""
    work, census = here(report), Census(holdout.EVERYTHING.limit)
    for part in work(partial(data.count, census.limit), groups, "reading documents"):
        census.merge(part)
    if census.unusable:
        hint = "Repair them; or is it of another kind? See --format and --field."
        raise DataError(census.complaint, hint=hint, param="--data")
    tasks = [Task(directory, str(n), group, holdout.EVERYTHING, chats) for n, group in enumerate(groups)]
    made = list(work(encode.encode, tasks, "tokenizing"))
    shard = encode.join(directory, [one.held_out for one in made], chats)
    if not shard.documents or not census.size_bytes:
        raise DataError("there is no text to measure on: expected some", hint="Check --data.", param="--data")
    return Corpus(
        directory,
        digest="",
        vocab_size=tokenizer.vocab_size,
        train_tokens=0,
        validation_tokens=shard.tokens,
        validation_bytes=(directory / "validation.txt").stat().st_size,
        gzip_bits=data.gzip_bits(directory / "validation.txt", made),
        unigram_bits=math.nan,  # there is no other text to count bytes in
        sources=(),
        held_out=shard,
        chats=chats,
    )


def _spread(directory: Path, vocab_size: int, length: int) -> SpreadModel:
    """The model as one rank holds it: exact on CPUs, in bf16 on GPUs. Raises ModelError, UsageError."""
    world = World.current()
    model: Transformer = weights.load_model(directory, torch.float32, dequantize=True)
    if length > model.config.max_position:
        limit = f"the model is made for at most {model.config.max_position}"
        raise UsageError(f"`--sequence {length}` is too long: {limit}", param="--sequence")
    if vocab_size > model.config.vocab_size:
        have = f"the tokenizer has {vocab_size:,} tokens, the model {model.config.vocab_size:,}"
        raise DataError(f"{have}: expected the tokenizer that it was trained with", hint="Is it another model's?")
    rows = max(1, MICRO_BATCH_TOKENS[world.device.type] // length)
    dtype = compute_dtype("auto" if world.device.type == "cuda" else "fp32", world.device)
    numerics = Numerics(dtype, torch.float32, torch.float32, recompute="none", compiled=False)
    model.requires_grad_(False)
    return SpreadModel(model, RankMesh(world), Layout(rows, rows, length), cross_entropy_sum, numerics)


def _beginnings(groups: Sequence[Sequence[Piece]], tokenizer: Tokenizer) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Of each document the first tokens; of a chat what comes before the first answer."""
    for document in (item for group in groups for piece in group for item in read(piece)):
        if isinstance(document, Document):
            yield _chat(document, tokenizer) if document.messages else _text(document, tokenizer)


def _text(document: Document, tokenizer: Tokenizer) -> tuple[str, tuple[int, ...]]:
    beginning = document.content[: 8 * PROMPT_TOKENS].decode(errors="ignore")
    tokens = tokenizer.encode(beginning, add_special_tokens=True)[:PROMPT_TOKENS]
    return tokenizer.decode(tokens), tuple(tokens)


def _chat(document: Document, tokenizer: Tokenizer) -> tuple[str, tuple[int, ...]]:
    messages: Sequence[Any] = document.messages or ()
    asked = list(itertools.takewhile(lambda message: message["role"] != ASSISTANT, messages))
    return "\n".join(message["content"] or "" for message in asked), tuple(tokenizer.encode_chat(asked))


def perplexity(loss: float) -> float:
    """Of ``loss`` nats per token: how many tokens it is as unsure between. Infinite beyond what a float holds."""
    return math.exp(loss) if loss < math.log(1e300) else math.inf
