"""``llmos compress``: a model with smaller weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmos.cli.output import Format, Output, client, fields, note, plain, say, say_json, size

app = typer.Typer()

Model = Annotated[str, typer.Argument(metavar="MODEL", help="a model's directory, or name[@version] of the cluster")]
Int8 = Annotated[bool, typer.Option("--int8", help="a scale for each output channel")]
Int4 = Annotated[
    bool, typer.Option("--int4", help="a scale for each group of columns of an output channel; the output matrix: int8")
]
GroupSize = Annotated[
    int | None,
    typer.Option("--group-size", help="columns of a group of int4; default: the widest that fits, up to 128"),
]
KeepOutput = Annotated[
    bool, typer.Option("--keep-output", help="leave the output matrix (lm_head) as it is, and tied to the embedding")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="the directory to create")]
Name = Annotated[
    str | None, typer.Option("--name", "-n", help="register it under this name; default: MODEL-int8 or MODEL-int4")
]


@app.command("compress", rich_help_panel="Models and services")
def compress(
    model: Model,
    int8: Int8 = False,
    int4: Int4 = False,
    group_size: GroupSize = None,
    keep_output: KeepOutput = False,
    out: Out = None,
    name: Name = None,
    output: Output = Format.TABLE,
) -> None:
    """Quantize a model's weights, on this machine, and write or register the result."""
    from llmos import compression
    from llmos.errors import UsageError

    if int8 == int4:
        raise UsageError("expected either `--int8` or `--int4`", hint="int8 is closer to the original, int4 smaller.")
    found = compression.compress(
        model,
        8 if int8 else 4,
        client,
        _progress,
        group=group_size,
        keep_output=keep_output,
        out=out,
        name=name,
    )
    say_json(found) if output is Format.JSON else say(_table(found))


def _progress(done: int, total: int) -> None:
    """A line at each tenth."""
    if done * 10 // total > (done - 1) * 10 // total:
        note(f"quantized {done} of {total} matrices")


def _table(found: dict[str, Any]) -> str:
    """What came of it: where it is, how much smaller, how far off."""
    group = f" in groups of {found['group_size']}" if found["group_size"] else " by channel"
    head = f"int{found['output_bits']} by channel" if found["output_bits"] else "as it was"
    original, now = found["original_bytes"], found["size_bytes"]
    worst = f"{found['worst_relative_error']:.4f} in {plain(found['worst_matrix'])}"
    return fields(
        [
            ("model", found.get("model", "")),
            ("path", plain(found.get("path", ""))),
            ("made from", plain(found["compressed_from"])),
            ("weights", f"int{found['bits']}{group}"),
            ("lm_head", head),
            ("size", f"{size(now)}, {now / original:.0%} of {size(original)}"),
            ("error", f"{found['relative_error']:.4f} of the weights (root mean square); at most {worst}"),
        ]
    )
