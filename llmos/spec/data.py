"""What a job is trained on: text, JSON lines, Parquet or chats; one source or a weighted mixture of several."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Literal, get_args

from pydantic import Field

from llmos.spec.base import LARGEST, Conflict, Paths, Strict

MIXTURE_BLOCK = 1000
"""In so many samples each source of a mixture has its share exactly, rounded to whole samples."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_uri(path: str) -> bool:
    """Whether ``path`` names a place by its scheme (``s3://…``) and not on the file system."""
    return bool(_SCHEME.match(path))


def _path_or_sources(data: Data) -> Iterator[Conflict]:
    if bool(data.path) == bool(data.sources):
        yield (), f"expected exactly one of `path` and `sources`, found {'both' if data.path else 'neither'}"
    if data.sources and (data.format, data.field) != ("auto", "text"):
        yield (), "`format` and `field` belong to each of the `sources` here"


def _each_path_once(data: Data) -> Iterator[Conflict]:
    first: dict[str, int] = {}
    for number, source in enumerate(data.sources or ()):
        for path in dict.fromkeys(source.path):
            if (other := first.setdefault(path, number)) != number:
                what = f"`{path[:200]}` is in `sources[{other}]` as well"
                yield ("sources",), f"`sources[{number}].path`: {what}: expected each text in one source"


def _weights_count(data: Data) -> Iterator[Conflict]:
    total = sum(source.weight for source in data.sources or ())
    for number, source in enumerate(data.sources or ()):
        if source.weight * MIXTURE_BLOCK < total:
            what = (
                f"`sources[{number}].weight: {source.weight:g}` is less than a {MIXTURE_BLOCK}th of the sum {total:g}"
            )
            yield ("sources",), f"{what}: expected more, or the source left out"


Format = Literal["auto", "text", "jsonl", "parquet", "chat"]
FORMATS: tuple[Format, ...] = get_args(Format)
_PATH = "a file, directory or glob, or a list of them; or a URI such as s3://bucket/prefix"
_FORMAT = "of the files; `auto` goes by their names (.jsonl, .ndjson, .parquet, else text)"
_FIELD = "the field of a JSON line, or the column of a Parquet file, that holds the text"


class Source(Strict):
    """One part of a mixture."""

    path: Paths = Field(description=_PATH)
    format: Format = Field(default="auto", description=_FORMAT)
    field: str = Field(default="text", min_length=1, description=_FIELD)
    weight: float = Field(default=1.0, gt=0, le=LARGEST, description="share of the samples, relative to the others'")


class Packing(Strict):
    """How documents share a sequence."""

    mask: Literal["auto", "none", "documents"] = Field(
        default="auto",
        description="`documents`: no token sees another document; `auto`: so for sft, `none` for pretrain",
    )


class Data(Strict):
    """What to train on: one ``path``, or several ``sources``."""

    path: Paths | None = Field(default=None, description=_PATH)
    format: Format = Field(default="auto", description=_FORMAT)
    field: str = Field(default="text", min_length=1, description=_FIELD)
    sources: Annotated[tuple[Source, ...], Field(strict=False)] | None = Field(
        default=None, description="a weighted mixture, instead of `path`"
    )
    # 259: the 256 bytes and 3 control tokens; no merges, so a token is a byte
    vocab_size: int = Field(default=4096, ge=259, le=2**20, description="tokens of the tokenizer trained on the data")
    validation_fraction: float = Field(default=0.05, gt=0, lt=1, description="share of the documents held out")
    unusable: Literal["refuse", "skip"] = Field(default="refuse", description="what to do about broken documents")
    packing: Packing = Packing()
    tokenize: Literal["auto", "local", "ray"] = Field(
        default="auto", description="where; `auto`: 1 GB and more as a Ray Data job if on a cluster"
    )
    log_samples: bool = Field(default=False, description="write down which samples each rank reads at each step")

    @property
    def mixture(self) -> tuple[Source, ...]:
        """The sources; a ``path`` alone is one."""
        return self.sources or (Source(path=self.path or (), format=self.format, field=self.field),)

    def with_paths(self, change: Callable[[str], str]) -> Data:
        """The same with every path changed."""
        if self.sources:
            moved = (part.model_copy(update={"path": tuple(map(change, part.path))}) for part in self.sources)
            return self.model_copy(update={"sources": tuple(moved)})
        return self.model_copy(update={"path": tuple(map(change, self.path or ()))})

    rules = (_path_or_sources, _each_path_once, _weights_count)
