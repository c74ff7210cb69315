"""constraints.txt: complete, within what pyproject.toml allows, and what this environment has."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.constraints import closure, direct, render

ROOT = Path(__file__).parents[3]
PINS = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


@pytest.mark.parametrize("requirement", direct(), ids=str)
def test_what_pyproject_asks_for_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_everything_needed_is_pinned() -> None:
    """Versions may differ here (another Python, a newer environment), names may not."""
    assert closure(direct()).keys() <= PINS.keys()


def test_no_pin_has_a_local_part_and_none_is_cuda() -> None:
    assert len(PINS) > 100
    assert not [name for name, version in PINS.items() if "+" in version or name.startswith("nvidia-")]


def test_local_parts_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Torch:
        version = "2.13.0+cpu"
        requires = ('sympy; extra == "x"',)

    monkeypatch.setattr(metadata, "distribution", lambda _: Torch())
    assert closure([Requirement("torch")]) == {"torch": "2.13.0"}
    assert closure([Requirement("Torch[x]")]) == {"torch": "2.13.0", "sympy": "2.13.0"}
    assert render({"b": "2", "a": "1"}).splitlines()[1:] == ["a==1", "b==2"]


def test_what_is_not_installed_is_named() -> None:
    with pytest.raises(SystemExit, match="`no-such-package>=1` is not installed"):
        closure([Requirement("no-such-package>=1")])
