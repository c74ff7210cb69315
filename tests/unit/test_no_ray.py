from __future__ import annotations

import importlib

import pytest

try:
    importlib.import_module("ray")
    COLLECTED_WITH_RAY = True
except ModuleNotFoundError:
    COLLECTED_WITH_RAY = False


def test_ray_cannot_be_imported_while_unit_tests_are_collected() -> None:
    assert not COLLECTED_WITH_RAY


@pytest.mark.parametrize("name", ["ray", "ray.serve"])
def test_ray_cannot_be_imported_in_a_unit_test(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="ray"):
        importlib.import_module(name)
