"""Unit tests run without Ray: importing it, by whatever detour, fails the test that did it."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

# With several workers a file that takes long must not be the last one.
LONG = ["test_meshes.py", "test_worlds.py", "test_ranks.py", "test_watchdog.py", "test_local.py", "test_shards.py"]
# Those that compute one thing over and over: counting their lines takes three times as long and shows no new ones.
UNCOUNTED = ["test_worlds.py", "test_plan_invariants.py", "test_simulation.py", "test_demand.py", "test_backfill.py"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
    for item in items:
        generated = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        if generated or item.path.name in UNCOUNTED:
            item.add_marker(pytest.mark.no_cover)


@contextmanager
def no_ray() -> Iterator[None]:
    """`import ray` raises ModuleNotFoundError ("import of ray halted"), even if Ray was imported before."""
    hidden = {name: module for name, module in sys.modules.items() if name == "ray" or name.startswith("ray.")}
    for name in hidden:
        del sys.modules[name]
    sys.modules["ray"] = None  # type: ignore[assignment]  # what the import system itself takes for "does not exist"
    try:
        yield
    finally:
        del sys.modules["ray"]
        sys.modules.update(hidden)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    with no_ray():
        return (yield)


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with no_ray():
        yield
