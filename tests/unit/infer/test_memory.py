"""How much memory can be had, in a container too."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from llmos.infer import memory

CPU = torch.device("cpu")


def container(root: Path, limit: str, used: int, stat: str = "") -> None:
    for name, text in (("memory.max", limit), ("memory.current", str(used)), ("memory.stat", stat)):
        (root / name).write_text(text.strip() + "\n")


@pytest.mark.parametrize(
    ("limit", "used", "stat", "free"),
    [
        ("1000", 400, "anon 300\nfile 100\ninactive_file 90\n", 690),
        ("1000", 950, "anon 950", 50),
        ("1000", 1200, "anon 1200", 0),
    ],
    ids=["files that were read count as free", "what is used does not", "more than the limit"],
)
def test_free_memory_of_a_container(
    limit: str, used: int, stat: str, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    container(tmp_path, limit, used, stat)
    assert memory.free_bytes(CPU) == free


def test_without_a_limit_it_is_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    container(tmp_path, "max", 10)
    assert memory.free_bytes(CPU) == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "nowhere")
    assert memory.free_bytes(CPU) == pytest.approx(psutil.virtual_memory().available, rel=0.2)
