"""scripts/install.py: what it asks of pip on machines with and without a GPU."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts import install

CPU = {"install": [{"metadata": {"name": "torch"}}, {"metadata": {"name": "sympy"}}]}
CUDA = {"install": [*CPU["install"], {"metadata": {"name": "nvidia-cublas"}}]}
Pip = Callable[..., list[list[str]]]


@pytest.fixture
def constraints(tmp_path: Path) -> Path:
    path = tmp_path / "constraints.txt"
    path.write_text("# pins\nray==2.60.0\ntorch==2.13.0\n")
    return path


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, constraints: Path) -> Pip:
    """Runs install.main() against a pip that answers with ``report``; returns what it was asked to install."""

    def run(
        report: dict[str, Any], *, gpu: bool, torch: list[tuple[str, str | None] | None], code: int = 0
    ) -> list[list[str]]:
        installed: list[list[str]] = []
        compiled: list[int] = []

        def answer(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            if "compileall" in command:  # in pip's stead, which is told not to
                compiled.append(len(installed))
                return subprocess.CompletedProcess(command, 1)
            arguments = command[command.index("install") + 1 :]
            if "--dry-run" in arguments:
                return subprocess.CompletedProcess(command, code, json.dumps(report))
            assert arguments[:2] == ["--quiet", "--no-compile"]
            installed.append(arguments[2:])
            return subprocess.CompletedProcess(command, code)

        monkeypatch.setattr(install.subprocess, "run", answer)
        monkeypatch.setattr(install, "has_gpu", lambda: gpu)
        states = iter(torch)
        monkeypatch.setattr(install, "installed_torch", lambda: next(states))
        install.main(["-c", str(constraints), "-e", ".[dev]"])
        assert compiled == [len(installed)]  # once, behind all
        return installed

    return run


def test_without_a_gpu_torch_comes_from_the_index_of_cpu_builds(pip: Pip, constraints: Path) -> None:
    torch, llmos = pip(CUDA, gpu=False, torch=[None, ("2.13.0", None)])
    assert torch == ["--no-deps", "--index-url", "https://download.pytorch.org/whl/cpu", "torch==2.13.0"]
    assert llmos == ["-c", str(constraints), "-e", ".[dev]"]


def test_a_pip_that_finds_a_cpu_build_by_itself_has_its_way(pip: Pip, constraints: Path) -> None:
    torch, _ = pip(CPU, gpu=False, torch=[None, ("2.13.0", None)])
    assert torch == ["-c", str(constraints), "torch==2.13.0"]


@pytest.mark.parametrize(
    ("gpu", "torch"),
    [(False, [("2.13.0", None), ("2.13.0", None)]), (True, [("2.13.0", "13.0")])],
    ids=["again", "gpu"],
)
def test_torch_is_left_to_pip_with_a_gpu_or_once_it_is_there(
    pip: Pip, gpu: bool, torch: list[tuple[str, str | None] | None]
) -> None:
    assert len(pip(CUDA, gpu=gpu, torch=torch)) == 1


def test_another_torch_is_replaced(pip: Pip) -> None:
    assert len(pip(CUDA, gpu=False, torch=[("2.12.0", None), ("2.13.0", None)])) == 2
    assert len(pip(CUDA, gpu=False, torch=[("2.13.0", "13.0"), ("2.13.0", None)])) == 2


def test_cuda_on_a_machine_without_a_gpu_is_an_error(pip: Pip) -> None:
    with pytest.raises(SystemExit, match=r"torch 2\.13\.0 for CUDA 13\.0 was installed on a machine without a GPU"):
        pip(CPU, gpu=False, torch=[None, ("2.13.0", "13.0")])


def test_a_pip_that_fails_ends_it(pip: Pip) -> None:
    with pytest.raises(SystemExit, match=r"pip finds no torch==2\.13\.0"):
        pip(CPU, gpu=False, torch=[None], code=1)
    with pytest.raises(SystemExit, match="pip failed"):
        pip(CPU, gpu=True, torch=[None], code=1)


def test_a_missing_pin_is_named(tmp_path: Path) -> None:
    path = tmp_path / "constraints.txt"
    path.write_text("torchvision==1\n")
    with pytest.raises(SystemExit, match="does not pin `torch`"):
        install.pinned("torch", path)


@pytest.mark.parametrize(("code", "expected"), [(0, True), (9, False)])
def test_a_gpu_is_what_nvidia_smi_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, expected: bool
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install.has_gpu() is False
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\nexit {code}\n")
    smi.chmod(0o755)
    assert install.has_gpu() is expected


def test_the_installed_torch_is_read_without_importing_it() -> None:
    found = install.installed_torch()
    assert found is not None
    assert found[0].count(".") == 2 and "+" not in found[0]
