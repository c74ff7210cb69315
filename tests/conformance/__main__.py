"""Others' tests and clients against our server, which runs without Ray and with a tiny model.

    make conformance        or: python -m tests.conformance [--openai-python PATH] [--openapi PATH] [--only NAME …]

``--openai-python`` (or LLMOS_OPENAI_PYTHON) is a checkout of that repository, or its bare git directory; without it the
sdist comes from pip's index. ``--openapi`` (or DATA/openai/openapi.yaml with LLMOS_DATA=DATA) is OpenAI's document;
without it, that part is left out, aloud. The clients live in environments of their own under .bench/conformance/.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from llmos.infer.encoder import EncoderEngine
from llmos.infer.local import LocalEngine
from tests.conformance import environments, openai_python, openapi
from tests.conformance.app import ENCODER, KEY, MODEL, conformance_app, write_model
from tests.unit.models.encoders import write_encoder
from tests.unit.openai.world import listening

CLIENTS = (
    ("openai (Python)", environments.OPENAI, "openai_python.py"),
    ("openai (Node)", environments.NODE, "openai_node.mjs"),
    ("langchain-openai", environments.LANGCHAIN, "langchain.py"),
    ("llama-index", environments.LLAMA_INDEX, "llama_index_client.py"),
    ("pydantic-ai", environments.PYDANTIC_AI, "pydantic_ai_client.py"),
    ("litellm", environments.LITELLM, "litellm_client.py"),
    ("llm", environments.LLM, "llm_cli.py"),
    ("Vercel AI SDK", environments.NODE, "vercel_ai.mjs"),
    ("curl -N", environments.OPENAI, "curl.py"),
)
GOAL = 45
TIMEOUT_S = 300.0
SEED_S = 0.05
NESTED = {"matryoshka_dimensions": [1, 32]}


@contextmanager
def served() -> Iterator[str]:
    """The address of a server of its own."""
    with tempfile.TemporaryDirectory() as directory:
        model = write_model(Path(directory, "model"))
        write_encoder(Path(directory, "encoder"), config={"max_position_embeddings": 512, **NESTED})
        engine = LocalEngine(model, dtype="float32", max_batch=8, runner="torch", threads=1)
        encoder = EncoderEngine(Path(directory, "encoder"), dtype="float32", threads=1)
        try:
            with listening(conformance_app(engine, encoder, Path(directory, "store.db"))) as url:
                yield url
        finally:
            engine.close()
            encoder.close()


@contextmanager
def seeded(url: str) -> Iterator[None]:
    """What is removed comes back at once: who tries everything removes everything, too."""
    over = threading.Event()

    def seed() -> None:
        with httpx.Client() as client:
            while not over.is_set():
                client.post(f"{url}/seed").raise_for_status()
                over.wait(SEED_S)

    thread = threading.Thread(target=seed)
    thread.start()
    yield
    over.set()
    thread.join()
    httpx.post(f"{url}/seed").raise_for_status()


class Report:
    """What is printed, and written down."""

    def __init__(self, log: Path | None) -> None:
        self._log, self._lines, self.failed = log, [], False

    def say(self, line: str) -> None:
        print(line, flush=True)
        self._lines.append(line)

    def row(self, name: str, well: bool, what: str) -> None:
        self.failed = self.failed or not well
        self.say(f"{'ok  ' if well else 'FAIL'}  {name:<44} {what}")

    def end(self) -> None:
        if self._log is not None:
            self._log.write_text("\n".join(self._lines) + "\n")


def openai_tests(report: Report, given: str | None) -> None:
    """openai-python's four files: seeded, not seeded, and all their variants."""
    environments.OPENAI.make()
    where = openai_python.source(given)
    for title, chosen, seeded, goal in (
        ("openai-python's tests, seeded", openai_python.PLAIN, True, GOAL),
        ("openai-python's tests, not seeded", openai_python.PLAIN, False, 0),
        ("openai-python's tests, strict and async too, seeded", "", True, 0),
    ):
        with served() as url:
            score = openai_python.run(where, url, chosen, seeded=seeded)
        report.row(
            title, score.passed >= goal, f"{score.passed} of {score.total}" + (f" (goal {goal})" if goal else "")
        )
        for name, why in score.failed if seeded else ():
            report.say(f"        {name}: {why}")


def clients(report: Report, only: list[str]) -> None:
    """Each client against one server."""
    with served() as url:
        for name, environment, script in CLIENTS:
            if only and name not in only:
                continue
            environment.make()
            environ = {
                **os.environ,
                **{"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_BASE": f"{url}/v1", "OPENAI_API_KEY": KEY},
                **{"MODEL": MODEL, "ENCODER": ENCODER, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            }
            environ.pop("PYTHONPATH", None)
            path, began = Path(__file__).parent / "clients" / script, time.monotonic()
            done = subprocess.run(
                [environment.run, str(path)],
                cwd=environment.directory, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S,
            )  # fmt: skip
            said = done.stdout.split() if done.returncode == 0 else done.stderr.strip().split("\n")[-1:]
            version = f"{said[-1]}, {time.monotonic() - began:.0f} s" if done.returncode == 0 else " ".join(said)[:200]
            report.row(name, done.returncode == 0, version)
            if done.returncode != 0:
                print(done.stderr[-3000:], file=sys.stderr)


def document(report: Report, given: str | None, examples: int) -> None:
    """schemathesis over OpenAI's document; the server must live afterwards."""
    found = given or (f"{os.environ['LLMOS_DATA']}/openai/openapi.yaml" if "LLMOS_DATA" in os.environ else "")
    if not Path(found).is_file():
        return report.say(
            f"--    {'schemathesis':<44} left out: name OpenAI's openapi.yaml with --openapi or LLMOS_DATA"
        )
    environments.SCHEMATHESIS.make()
    with served() as url:
        with seeded(url):
            well, said = openapi.run(Path(found), url, examples)
        headers = {"Authorization": f"Bearer {KEY}"}
        alive = httpx.post(f"{url}/v1/completions", headers=headers, json={"model": MODEL, "prompt": "x"}).is_success
    version = environments.SCHEMATHESIS.requirements[0].partition("==")[2]
    report.row("schemathesis", well and alive, f"{version}, {examples} examples each: {openapi.CHECKS}")
    if not (well and alive):
        print(said[-20_000:], file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.conformance", description=__doc__.partition("\n")[0])
    parser.add_argument("--openai-python", default=os.environ.get("LLMOS_OPENAI_PYTHON"))
    parser.add_argument("--openapi")
    parser.add_argument("--only", nargs="*", default=[], help="tests, clients, document, or names of clients")
    parser.add_argument("--examples", type=int, default=40, help="of schemathesis, for each operation")
    parser.add_argument("--log", type=Path, help="where the table is written, too")
    args = parser.parse_args()
    report, names = Report(args.log), [name for name, *_ in CLIENTS]
    if not args.only or "tests" in args.only:
        openai_tests(report, args.openai_python)
    if not args.only or "clients" in args.only or set(names) & set(args.only):
        clients(report, [name for name in args.only if name in names])
    if not args.only or "document" in args.only:
        document(report, args.openapi, args.examples)
    report.end()
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
