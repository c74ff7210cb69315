"""``import llmos`` is what every command and notebook begins with: it must cost nothing and show everything."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import llmos
from llmos import errors

HEAVY = ("ray", "torch", "pydantic", "httpx", "openai", "typer", "rich", "yaml", "numpy", "fastapi")


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_importing_llmos_loads_nothing_heavy() -> None:
    loaded = fresh("import sys, llmos; print(*sorted(sys.modules))").split()
    assert "llmos" in loaded
    assert not {name.partition(".")[0] for name in loaded} & set(HEAVY)


def test_connecting_loads_neither_ray_nor_torch_nor_specs() -> None:
    loaded = fresh("import sys, llmos; llmos.connect('http://127.0.0.1:1', 'k'); print(*sys.modules)").split()
    assert not {name.partition(".")[0] for name in loaded} & {"ray", "torch", "pydantic", "openai"}


def test_importing_llmos_is_fast() -> None:
    """Under 0.3 s, and less than ten times ``import json``'s cost: a busy machine slows both down."""
    measure = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
    llmos_s, json_s = (min(float(fresh(measure.format(name))) for _ in range(5)) for name in ("llmos", "json"))
    assert llmos_s < max(0.3, 10 * json_s), f"import llmos took {llmos_s:.3f} s, import json {json_s:.3f} s"


def test_every_public_name_is_there_and_declared_to_type_checkers() -> None:
    tree = ast.parse(Path(llmos.__file__).read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    declared = {alias.name for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert declared | {"__version__"} == set(llmos.__all__)
    assert all(getattr(llmos, name) is not None for name in llmos.__all__)
    assert llmos.__all__ == sorted(llmos.__all__) and set(llmos.__all__) <= set(dir(llmos))
    assert not hasattr(llmos, "surprise")


def test_every_error_is_public() -> None:
    leaves = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert leaves <= set(llmos.__all__)
