"""``llmos eval``: perplexity, bits per byte and samples of a model."""

from __future__ import annotations

import textwrap
from typing import Annotated, Any

import typer

from llmos import settings
from llmos.cli.output import Format, Output, fields, note, paint, plain, say, say_json, size
from llmos.layout import Layout

app = typer.Typer()
WIDTH = 100

Model = Annotated[str, typer.Argument(metavar="MODEL", help="name[@version], a model's directory, or a checkpoint's")]
Data = Annotated[list[str], typer.Option("--data", metavar="PATH|GLOB|URI", help="text to measure on; repeatable")]
DataFormat = Annotated[
    str, typer.Option("--format", help="auto (by name; chats for a model trained on chats), text, jsonl, parquet, chat")
]
Field = Annotated[str, typer.Option("--field", help="of a JSON line or Parquet row, the text")]
Sequence = Annotated[int | None, typer.Option("--sequence", min=2, help="tokens of a row; default: as in training")]
Prompt = Annotated[list[str] | None, typer.Option("--prompt", help="let it go on from this text; repeatable")]
Samples = Annotated[int, typer.Option("--samples", min=0, help="else: from the beginnings of so many documents")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="of a sample")]
Temperature = Annotated[float, typer.Option("--temperature", min=0, help="of samples; 0: the likeliest token")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="of samples")]


@app.command("eval", rich_help_panel="Models and services")
def evaluate(
    model: Model,
    data: Data,
    format: DataFormat = "auto",
    field: Field = "text",
    sequence: Sequence = None,
    prompt: Prompt = None,
    samples: Samples = 3,
    max_tokens: MaxTokens = 48,
    temperature: Temperature = 0.7,
    seed: Seed = 0,
    output: Output = Format.TABLE,
) -> None:
    """Measure how well a model predicts a text, on this machine, and show what it writes."""
    from llmos import evaluation
    from llmos.errors import UsageError
    from llmos.spec.data import FORMATS

    if format not in FORMATS:
        raise UsageError(f"`--format {format[:40]}`: expected one of {', '.join(FORMATS)}", param="--format")
    sampling = evaluation.Sampling(tuple(prompt or ()), samples, max_tokens, temperature, seed)
    layout = Layout(settings.state_dir())
    found = evaluation.evaluate(
        model, data, layout, note, format=format, field=field, sequence=sequence, sampling=sampling
    )
    say_json(found) if output is Format.JSON else say(_table(found))


def _table(found: dict[str, Any]) -> str:
    kind = "chats, the assistant's tokens" if found["chats"] else "documents"
    text = f"{found['documents']:,} {kind}, {size(found['bytes'])}, {found['tokens']:,} tokens"
    pairs = [
        ("model", plain(found["model"])),
        ("data", f"{text}, in rows of {found['sequence_length']:,}"),
        ("loss", f"{found['loss']:.4f} nats per token"),
        ("perplexity", f"{found['perplexity']:,.2f}"),
        ("bits per byte", f"{found['bits_per_byte']:.4f}   (gzip -9: {found['gzip_bits']:.4f})"),
    ]
    return "\n\n".join([fields(pairs), *map(_sample, found["samples"])])


def _sample(sample: dict[str, str]) -> str:
    """The prompt, dim, and what came after it, without what could drive a terminal."""
    lines = "\n".join(f"  {plain(line)}" for line in sample["completion"].splitlines()) or "  (nothing)"
    prompt = textwrap.shorten(plain(sample["prompt"]), WIDTH, placeholder=" …")
    return f"{paint(prompt, 'dim')}\n{lines}"
