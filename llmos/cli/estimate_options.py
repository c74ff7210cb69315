"""The options of ``llmos estimate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmos.core import capacity

Model = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="a preset, a size such as 8B, or a directory with config.json")
]
Gpus = Annotated[
    int | None, typer.Option("--gpus", min=1, metavar="N", help="how many; default: the fewest that hold it")
]
Gpu = Annotated[str, typer.Option("--gpu", metavar="KIND", help=", ".join(capacity.KINDS))]
Tokens = Annotated[str, typer.Option("--tokens", help="to train on, as in 15T; default: 20 for each weight")]
Deadline = Annotated[str, typer.Option("--deadline", help="such as 30d: finds the number of GPUs")]
Sequence = Annotated[int, typer.Option("--sequence", min=1, help="tokens of a sequence")]
Batch = Annotated[int | None, typer.Option("--batch", min=1, help="sequences of a step; default: 4Mi tokens")]
MicroBatch = Annotated[
    int | None, typer.Option("--micro-batch", min=1, help="sequences of a forward pass; default: best")
]
MeshText = Annotated[str, typer.Option("--mesh", help="only this one, such as fsdp=8,tp=4; says --gpus as well")]
Precision = Annotated[str, typer.Option("--precision", help=", ".join(capacity.PRECISIONS))]
Optimizer = Annotated[str, typer.Option("--optimizer", help=", ".join(capacity.OPTIMIZERS))]
Recompute = Annotated[
    str, typer.Option("--checkpointing", help=f"of activations: auto, {', '.join(capacity.CHECKPOINTING)}")
]
Schedule = Annotated[str, typer.Option("--schedule", help=f"of pipelines: {', '.join(capacity.SCHEDULES)}")]
Stages = Annotated[int, typer.Option("--stages", min=1, help="of each rank, interleaved or zero_bubble")]
Compiled = Annotated[bool, typer.Option("--compile", help="with torch.compile")]
Price = Annotated[float | None, typer.Option("--price", min=0, help="dollars per hour of one GPU")]
Requests = Annotated[float | None, typer.Option("--requests", min=0.001, help="per second: estimate serving instead")]
Prompt = Annotated[int, typer.Option("--prompt", min=1, help="tokens of a prompt")]
Answer = Annotated[int, typer.Option("--answer", min=1, help="tokens of an answer")]
FirstToken = Annotated[float, typer.Option("--first-token", min=0, help="seconds to it that are promised")]
PerToken = Annotated[float, typer.Option("--per-token", min=0, help="seconds for each that are promised")]
Weights = Annotated[str, typer.Option("--weights", help=f"that are served: {', '.join(capacity.WEIGHTS)}")]
Calibrate = Annotated[bool, typer.Option("--calibrate", help="measure this machine; later estimates use it")]
StateDir = Annotated[Path | None, typer.Option("--state-dir", help="default: LLMOS_STATE_DIR, else ~/.llmos")]
