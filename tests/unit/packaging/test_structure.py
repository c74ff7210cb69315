"""The structure check (`make check` runs it on this tree): each rule catches what it is there for."""

from __future__ import annotations

import pytest

from scripts.check_structure import problems

SHORT = "def _g() -> int:\n    return 1\n" * 4
DOC = '"""What it is."""\n'


def test_a_sound_file_has_no_problems() -> None:
    text = DOC + "from llmos.errors import LlmosError\nimport numpy\n\n\ndef f() -> int:\n    return 1\n"
    assert problems({"llmos/core/plan.py": text}) == []


@pytest.mark.parametrize(
    ("path", "code", "expected"),
    [
        ("llmos/core/plan.py", "import llmos.control.store", "llmos.core may import errors of llmos"),
        ("llmos/core/plan.py", "from llmos import spec", "llmos.core may import errors of llmos"),
        ("llmos/core/plan.py", "import pydantic", "llmos.core is pure"),
        ("llmos/errors.py", "from llmos.core import plan", "llmos.errors may import nothing of llmos"),
        (
            "llmos/train/loop.py",
            "def f() -> None:\n    from llmos.infer import engine\n    engine()",
            "llmos.train may",
        ),
        ("llmos/openai/wire.py", "from llmos.models.config import ModelConfig", "llmos.openai may import"),
        ("llmos/openai/wire.py", "import torch.nn", "`torch` is legal only in"),
        ("llmos/control/loop.py", "from ray import serve", "`ray` is legal only in"),
        ("llmos/train/loop.py", "import ray.train", "`ray` is legal only in"),
        ("llmos/views.py", "from llmos.cli import app", "`llmos.cli` is legal only in"),
        ("llmos/control/loop.py", "import deployments.gateway", "`deployments` is legal only in"),
        ("tests/unit/test_a.py", "import ray", "`ray` is legal only in"),
        ("llmos/spec/a.py", "def f() -> None:\n    pass", "f does nothing"),
        ("llmos/spec/a.py", 'def f() -> None:\n    """Later."""', "f does nothing"),
        ("llmos/spec/a.py", "def f() -> None:\n    raise NotImplementedError('later')", "f does nothing"),
        ("llmos/spec/a.py", "class A:\n" + "    x = 1\n" * 5, "A is public and has no docstring"),
        (
            "llmos/spec/a.py",
            "def f(x: int) -> int:\n" + "    x += 1\n" * 5,
            "f is public and has no docstring",
        ),
        ("llmos/spec/a.py", "x = 1\n" * 300, "301 lines, at most 300"),
        ("scripts/a.py", SHORT + "def _f(x: int) -> int:\n" + "    x += 1\n" * 40, "_f has 41 lines, at most 40"),
        ("llmos/spec/a.py", "def _f(x: int) -> int:\n" + "    x += 1\n" * 12, "13.0 lines on average, at most 12"),
        ("docs/a.md", "see /home/" + "me/llmos", "is a path of one machine"),
        ("llmos/spec/a.py", "def f(", "cannot be parsed"),
    ],
)
def test_a_rule_catches(path: str, code: str, expected: str) -> None:
    text = DOC + code if path.endswith(".py") else code
    found = problems({path: text})
    assert len(found) == 1
    assert expected in found[0]
    assert found[0].startswith(path) or "on average" in found[0]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("llmos/control/ray/head.py", "import ray"),
        ("llmos/train/worker.py", "import ray.train"),
        ("deployments/gateway.py", "from ray import serve"),
        ("llmos/infer/__main__.py", "from llmos.openai import server"),
        (
            "llmos/spec/a.py",
            "from typing import Protocol\n\n\nclass P(Protocol):\n    'P.'\n\n    def f(self) -> int: ...",
        ),
        ("docs/a.md", "on the head node: /home/" + "ubuntu/llmos; and ~/root/x, https://host/root/x"),
    ],
)
def test_a_rule_leaves_alone(path: str, code: str) -> None:
    assert problems({path: DOC + code if path.endswith(".py") else code}) == []
