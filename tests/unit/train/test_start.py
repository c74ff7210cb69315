"""What a rank loads: every start of a worker pays for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llmos.spec import to_dict
from tests.unit.train.conftest import Trainer

_RANK_0 = """
import sys
from llmos.train.__main__ import main
code = main()
loaded = [name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules]
sys.exit(code or f"loaded {loaded}" if loaded else code)
"""


@pytest.mark.timeout(120)  # two processes load torch
def test_ranks_that_compile_nothing_do_not_load_torchs_compiler(trainer: Trainer, tmp_path: Path) -> None:
    spec = tmp_path / "job.yaml"
    job = trainer.job(mesh={"dp": 2}, workers={"min": 2, "max": 2}, steps=2)
    spec.write_text(yaml.safe_dump({name: value for name, value in to_dict(job).items() if value is not None}))
    command = [sys.executable, "-c", _RANK_0, str(spec), "--state-dir", str(trainer.layout.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
