"""The environments of the clients, under ``.bench/conformance/``: made by pip and npm, in the versions named here."""

from __future__ import annotations

import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIRECTORY = ROOT / ".bench" / "conformance"


@dataclass(frozen=True, slots=True)
class Environment:
    """``requirements`` of pip, or of npm for ``node``."""

    name: str
    requirements: tuple[str, ...]
    node: bool = False

    @property
    def directory(self) -> Path:
        return DIRECTORY / self.name

    @property
    def run(self) -> str:
        """What runs a script in it."""
        return "node" if self.node else str(self.directory / "venv" / "bin" / "python")

    def make(self) -> None:
        """Install it, unless that has been done with these requirements."""
        stamp = self.directory / "installed"
        wanted = "\n".join(self.requirements)
        if stamp.exists() and stamp.read_text() == wanted:
            return
        print(f"installing {self.name}: {', '.join(self.requirements)}", file=sys.stderr, flush=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.node:
            subprocess.run(["npm", "init", "-y"], cwd=self.directory, check=True, capture_output=True)
            install = ["npm", "install", "--no-audit", "--no-fund", *self.requirements]
        else:
            venv.create(self.directory / "venv", with_pip=True)
            install = [self.run, "-m", "pip", "install", "-q", "--disable-pip-version-check", *self.requirements]
        subprocess.run(install, cwd=self.directory, check=True, capture_output=True)
        stamp.write_text(wanted)


OPENAI = Environment(
    "openai-tests",
    ("openai==3.3.1", "pytest==9.*", "pytest-asyncio==1.4.*", "pytest-xdist==3.8.*", "rich==15.*", "aiohttp"),
)
SCHEMATHESIS = Environment("schemathesis", ("schemathesis==4.32.5",))
NODE = Environment("node", ("openai@7.55.0", "ai@7.0.173", "@ai-sdk/openai-compatible@3.0.92"), node=True)
LANGCHAIN = Environment("langchain", ("langchain-openai==1.7.4",))
LLAMA_INDEX = Environment(
    "llama-index", ("llama-index-llms-openai-like==0.8.1", "llama-index-embeddings-openai-like==0.4.0")
)
PYDANTIC_AI = Environment("pydantic-ai", ("pydantic-ai-slim[openai]==2.68.0",))
LITELLM = Environment("litellm", ("litellm==1.110.2",))
LLM = Environment("llm", ("llm==0.36",))
