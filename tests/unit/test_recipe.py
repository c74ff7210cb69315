import ast
import glob
import json
import os
import subprocess
import sys

from llmos import recipe
from llmos.spec import parse, to_dict


def test_standard_library_is_code_of_python_itself() -> None:
    files = [file for pattern in recipe.standard_library() for file in glob.glob(pattern)]
    assert {ast.__file__, json.decoder.__file__} <= set(files)
    assert not [file for file in files if {"site-packages", "test", "idle_test"} & set(file.split(os.sep))]
    assert sum(map(os.path.getsize, files)) > 5e6


def test_the_job_is_valid_and_says_its_tokens() -> None:
    job = recipe.stdlib_coder(["/a/*.py"], 100)
    assert parse(to_dict(job)) == job
    assert job.batch_size * job.sequence_length == recipe.TOKENS_PER_STEP
    assert job.data.path == ("/a/*.py",)


def test_needs_no_torch() -> None:
    code = "import sys, llmos.recipe, llmos.samples; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
