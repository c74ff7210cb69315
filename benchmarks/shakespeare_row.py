"""``shakespeare``: the known table of nanoGPT's README, characters of tiny Shakespeare, beside nanoGPT itself.

llmos trains ``examples/shakespeare``; nanoGPT runs the command of its README for CPUs. Both have all cores, 4 layers of
4 heads, 128 wide, a context of 64, batches of 12, 2,000 iterations. Time is that of the whole process, from its start
to the trained model; nanoGPT gets its tokens prepared. The loss is that of the held-out last tenth, per character:
ours of all of it, nanoGPT's estimated by itself on 20 batches.
"""

from __future__ import annotations

import os
import pickle
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.contenders import run
from benchmarks.peers import NANOGPT, Missing
from benchmarks.rows import ROOT, Measured, Options, Unmeasured
from llmos.files import read_json

TEXT = "text/tinyshakespeare.txt"
STEPS, QUICK_STEPS, ROUNDS = 2000, 200, 2
_README = (
    *("--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1", "--block_size=64", "--batch_size=12"),
    *("--n_layer=4", "--n_head=4", "--n_embd=128", "--dropout=0.0"),
)


def shakespeare(options: Options) -> Measured:
    """Held-out nats per character after all steps; the ratio is that of the times."""
    text = options.file(TEXT)
    steps, rounds = (QUICK_STEPS, 1) if options.quick else (STEPS, ROUNDS)
    ours, theirs = [], []
    with tempfile.TemporaryDirectory(prefix="llmos-shakespeare-") as directory:
        root = Path(directory)
        _prepare(text, root / "characters")
        try:
            for number in range(rounds):
                theirs.append(_nanogpt(root, steps))
                ours.append(_llmos(text, root / str(number), steps))
        except Missing as missing:
            raise Unmeasured(str(missing)) from missing
    ratio = statistics.median(mine / other for (_, mine), (_, other) in zip(ours, theirs, strict=True))
    loss, other_loss = (statistics.median(loss for loss, _ in found) for found in (ours, theirs))
    times = "; ".join(f"{mine:.1f} s beside {other:.1f} s" for (_, mine), (_, other) in zip(ours, theirs, strict=True))
    return Measured(loss, other_loss, ratio, f"{steps:,} iterations: {times}, the whole process")


def _environment(root: Path) -> dict[str, str]:
    """All cores, and nothing of the user's."""
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**kept, "HOME": str(root), "PYTHONUNBUFFERED": "1"}


def _llmos(text: Path, state: Path, steps: int) -> tuple[float, float]:
    """The loss and the seconds of ``python -m llmos.train``."""
    command = [sys.executable, "-m", "llmos.train", "examples/shakespeare/train.yaml", "--data", str(text)]
    began = time.perf_counter()
    run([*command, "--state-dir", str(state), "--steps", str(steps)], _environment(state.parent), ROOT)
    taken_s = time.perf_counter() - began
    outcome = read_json(state / "jobs" / "shakespeare" / "attempts" / "1" / "outcome.json")
    return outcome["metrics"]["validation_loss"], taken_s


def _nanogpt(root: Path, steps: int) -> tuple[float, float]:
    """The loss and the seconds of nanoGPT's ``train.py``, by the command of its README."""
    command = [str(NANOGPT.python), "train.py", "config/train_shakespeare_char.py", *_README]
    command += [f"--max_iters={steps}", f"--lr_decay_iters={steps}", f"--eval_interval={min(steps, 250)}"]
    command += [f"--dataset={root / 'characters'}", f"--out_dir={root / 'nanogpt'}"]
    began = time.perf_counter()
    said = run(command, _environment(root), NANOGPT.repository)
    taken_s = time.perf_counter() - began
    return float(re.findall(r"val loss ([\d.]+)", said)[-1]), taken_s


def _prepare(text: Path, target: Path) -> None:
    """The files that nanoGPT's ``data/shakespeare_char/prepare.py`` makes, which downloads the text."""
    target.mkdir()
    content = text.read_text()
    number_of = {char: number for number, char in enumerate(sorted(set(content)))}
    ids = np.array([number_of[char] for char in content], dtype=np.uint16)
    cut = int(len(ids) * 0.9)
    ids[:cut].tofile(target / "train.bin")
    ids[cut:].tofile(target / "val.bin")
    (target / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(number_of)}))
