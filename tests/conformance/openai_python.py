"""openai-python's own tests of the endpoints that we have, as they are in its repository, against our server."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.environments import OPENAI

FILES = tuple(
    f"tests/api_resources/{name}.py"
    for name in ("chat/test_completions", "test_completions", "test_models", "test_embeddings")
)
PLAIN = "not Async and not strict"
"""The 47 tests that vLLM's figure is of; the others repeat them with stricter parsing, and with asyncio."""


@dataclass(frozen=True, slots=True)
class Score:
    """``failed`` has the name of each test and why."""

    passed: int
    failed: tuple[tuple[str, str], ...]

    @property
    def total(self) -> int:
        return self.passed + len(self.failed)


def source(given: str | None) -> Path:
    """Where openai-python lies: its repository (``given``: a checkout, or a bare git directory), or its sdist."""
    target = OPENAI.directory / "source"
    if given is not None and (Path(given) / "tests").is_dir():
        return Path(given)
    target.mkdir(parents=True, exist_ok=True)
    if given is not None:
        archive = target / "source.tar"
        git = ["git", f"--git-dir={given}", "archive", "--format=tar", f"--output={archive}", "HEAD"]
        subprocess.run(git, check=True)
    else:
        download = [OPENAI.run, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
        wanted = next(one for one in OPENAI.requirements if one.startswith("openai=="))
        subprocess.run([*download, "-d", str(target), wanted], check=True, capture_output=True)
        archive = next(target.glob("openai-*.tar.gz"))
    with tarfile.open(archive) as packed:
        packed.extractall(target, filter="data")
    archive.unlink()
    return next((path for path in (target, *target.iterdir()) if (path / "tests").is_dir()), target)


def run(where: Path, url: str, chosen: str, *, seeded: bool) -> Score:
    """The score of the tests that ``chosen`` (pytest's ``-k``) selects; ``seeded``: what they name is there."""
    report = OPENAI.directory / "report.xml"
    report.unlink(missing_ok=True)
    plugin = ["-p", "seeding"] if seeded else []
    command = [OPENAI.run, "-m", "pytest", "-o", "addopts=", "-q", "--tb=line", *plugin, f"--junitxml={report}"]
    here = str(Path(__file__).parent)
    environment = {
        **os.environ,
        **{"TEST_API_BASE_URL": f"{url}/v1", "LLMOS_SEED": f"{url}/seed", "PYTHONPATH": f"{where / 'src'}:{here}"},
    }
    done = subprocess.run([*command, "-k", chosen, *FILES], cwd=where, env=environment, capture_output=True, text=True)
    if not report.exists():
        raise RuntimeError(f"the tests did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314  # ours
    failed = tuple((_name(case), why) for case in cases if (why := _why(case)) is not None)
    return Score(len(cases) - len(failed), failed)


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"


def _why(case: ElementTree.Element) -> str | None:
    for kind in ("failure", "error"):
        if (found := case.find(kind)) is not None:
            return re.sub(r"\s+", " ", found.get("message") or "")[:120]
    return None
