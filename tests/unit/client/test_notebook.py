"""The notebooks walk the road with public names only. Here their cells run against an API in memory."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import llmos
from llmos import client
from tests.unit.fake_api import KEY, FakeApi, listening

NOTEBOOKS = sorted((Path(__file__).parents[3] / "notebooks").glob("*.ipynb"))


def cells(notebook: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


def source(notebook: Path) -> str:
    return "\n".join("".join(cell["source"]) for cell in cells(notebook))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_uses_public_names_and_carries_no_output(notebook: Path) -> None:
    tree = ast.walk(ast.parse(source(notebook)))
    for node in tree:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert all(name == "llmos" or name in sys.stdlib_module_names for name in names), names
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "llmos":
            assert node.attr in llmos.__all__, node.attr
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(notebook))


def test_the_quickstart_notebook_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    api = FakeApi()
    monkeypatch.setattr(client, "POLL_S", 0.01)
    monkeypatch.setenv("LLMOS_API_KEY", KEY)
    monkeypatch.setenv("LLMOS_NOTEBOOK_STEPS", "200")
    api.add_model("notebook-coder")
    with listening(api) as url:
        monkeypatch.setenv("LLMOS_URL", url)
        names: dict[str, Any] = {}
        exec(source(next(path for path in NOTEBOOKS if path.name == "01_quickstart.ipynb")), names)
    out = capsys.readouterr().out
    assert "<job notebook-coder-1 · succeeded · step 200/200" in out
    assert "4.000 █▄▂▁ 1.600" in out
    assert "def fibonacci(n):def fibonacci(n): and so on" in out
    assert "re: Write a function that adds two numbers." in out
    assert out.endswith("import  and so on")
    assert api.jobs[0]["spec"]["steps"] == 200 and api.services == {}


def test_the_training_notebook_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    api = FakeApi()
    monkeypatch.setattr(client, "POLL_S", 0.01)
    monkeypatch.setenv("LLMOS_API_KEY", KEY)
    monkeypatch.setenv("LLMOS_NOTEBOOK_STEPS", "200")
    with listening(api) as url:
        monkeypatch.setenv("LLMOS_URL", url)
        exec(source(next(path for path in NOTEBOOKS if path.name == "02_training.ipynb")), {})
    out = capsys.readouterr().out
    assert "loss 4.000 → 1.600, 9,600 tokens/s" in out
    assert "did you mean `learning_rate`?" in out
    one, two = (job["spec"] for job in api.jobs)
    assert (one["model"], one["output"]) == ({"preset": "nano"}, {"model": "notebook-nano"})
    assert (two["mesh"]["dp"], two["workers"]["min"], two["micro_batch_size"]) == (2, 2, "auto")
    assert (two["steps"], two["batch_size"], two["seed"]) == (one["steps"], one["batch_size"], one["seed"])
