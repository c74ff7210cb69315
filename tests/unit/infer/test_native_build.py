"""How the native step is compiled: once, atomically, where nobody else can write; and how threads are chosen."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmos.errors import EngineError
from llmos.infer.native import build as building
from llmos.infer.native import threads
from llmos.infer.native.bindings import Library


def compiler(directory: Path, script: str) -> str:
    """A compiler that does as ``script`` says; it writes a line to ``calls`` for each file it compiles."""
    path = directory / "compiler"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit\necho called >> {directory}/calls\n{script}\n')
    path.chmod(0o755)
    return str(path)


WORKS = 'sleep 0.2; for last; do :; done; echo built > "$last"'


def test_two_that_build_at_once_compile_once(tmp_path: Path) -> None:
    made = compiler(tmp_path, WORKS)
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: building.build(made, tmp_path / "cache"), range(2)))
    assert paths[0] == paths[1] and paths[0].read_text() == "built\n"
    assert (tmp_path / "calls").read_text() == "called\n"
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["lock", paths[0].name]
    assert paths[0].parent.stat().st_mode & 0o777 == 0o700


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(tmp_path: Path) -> None:
    made = compiler(tmp_path, 'echo "native.cpp:3: error: no such thing" >&2; exit 1')
    with pytest.raises(EngineError, match="native.cpp:3: error: no such thing"):
        building.build(made, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]


@pytest.mark.parametrize("what", ["lock", "scratch", "target"])
def test_a_disk_that_is_full_or_read_only_is_said_with_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    place = {"lock": (Path, "open"), "scratch": (building.tempfile, "TemporaryDirectory"), "target": (os, "replace")}
    made = compiler(tmp_path, WORKS)
    monkeypatch.setattr(*place[what], full)
    with pytest.raises(EngineError, match=f"{tmp_path / 'cache'}.*No space left") as caught:
        building.build(made, tmp_path / "cache")
    assert "XDG_CACHE_HOME" in caught.value.hint


def test_a_cache_that_may_not_be_looked_into_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)
    assert not building.available()
    monkeypatch.undo()

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert not building.available()
    with pytest.raises(EngineError, match="home directory"):
        building.build()


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    assert not building.available()
    with pytest.raises(EngineError, match="needs a C"):
        building.build()


@pytest.mark.parametrize("mode", [0o777, 0o720])
def test_nothing_is_loaded_from_where_others_can_write(tmp_path: Path, mode: int) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(mode)
    with pytest.raises(EngineError, match="others can write"):
        building.build(compiler(tmp_path, WORKS), cache)
    assert not (tmp_path / "calls").exists()


def test_available_once_it_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", compiler(tmp_path, WORKS))
    assert not building.available()
    building.build()
    assert building.available()


def test_another_processor_has_a_build_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = compiler(tmp_path, WORKS)
    first = building.build(made, tmp_path / "cache")
    monkeypatch.setattr(building, "_processor", lambda: "another")
    building._key.cache_clear()
    assert building.build(made, tmp_path / "cache") != first


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "step.so").write_text("built")
    with pytest.raises(EngineError, match="cannot be loaded"):
        Library(tmp_path / "step.so")


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 4.0, 2: 2.0, 4: 1.0}, 4),
        ({1: 4.0, 2: 2.0, 4: 1.99}, 2),  # not worth two more
        ({1: 1.0, 2: 5.0, 4: 3.0}, 1),  # others need the cores
        ({1: 4.0, 2: 4.5, 4: 1.0}, 4),
    ],
)
def test_threads_are_chosen_by_the_clock(
    seconds: dict[int, float], chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, calls = [0.0], [0]

    def run(count: int) -> None:
        calls[0] += 1
        slow = 50.0 if calls[0] <= len(seconds) or calls[0] == 5 else 1.0  # the first ones warm up, one is disturbed
        now[0] += slow * seconds[count]

    monkeypatch.setattr(threads.time, "perf_counter", lambda: now[0])
    best, typical = threads.fastest(run, list(seconds))
    assert best == chosen and typical == pytest.approx(seconds)


def test_candidates_end_with_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in ((1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False)
        assert threads.candidates() == expected
