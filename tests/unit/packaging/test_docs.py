"""The documents say what is: generated pages are current, links lead somewhere, examples are accepted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmos.spec import load
from scripts.spec_docs import page

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_page_of_specs_is_current() -> None:
    assert (ROOT / "docs/specs.md").read_text() == page(), "run `make docs`"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()) if "://" not in link]
    assert not [target for target in targets if not (path.parent / target).exists()]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_specs_in_the_documents_are_accepted(path: Path) -> None:
    for example in re.findall(r"^```yaml\n(kind:.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
        assert load(example, source=path.name)


def test_the_readme_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"quickstart", "test"} <= set(re.findall(r"^make (\S+)", readme, re.MULTILINE)) <= targets
