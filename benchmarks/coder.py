"""The quickstart's model, trained once for the benchmarks that need one which has learnt something."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.peers import DIRECTORY
from llmos import recipe
from llmos.spec import Mesh
from llmos.spec.load import to_dict

_STEPS, _QUICK_STEPS = 400, 120


def coder(quick: bool) -> Path:
    """A directory with the model, under ``.bench/models``; training takes minutes, fewer if it may be ``quick``."""
    steps = _QUICK_STEPS if quick else _STEPS
    directory = DIRECTORY / "models" / f"{recipe.NAME}-{steps}"
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="llmos-coder-", dir=directory.parent) as made:
            shutil.move(_trained(Path(made), steps), directory)
    return directory


def _trained(state: Path, steps: int) -> Path:
    workers = min(2, os.cpu_count() or 1)
    job = recipe.stdlib_coder(recipe.standard_library(), steps).model_copy(update={"mesh": Mesh(dp=workers)})
    spec = state / "spec.json"
    spec.write_text(json.dumps(to_dict(job)))
    command: list[str | Path] = [sys.executable, "-m", "llmos.train", spec, "--state-dir", state]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Path(printed.strip().splitlines()[-1])
