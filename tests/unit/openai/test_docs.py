"""The lines of docs/api.md, as they are written there, against the server without Ray."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from llmos.control.store.completions import Completions
from llmos.control.store.database import Database
from llmos.infer.local import LocalEngine
from llmos.serving import standalone
from tests.support import ROOT
from tests.unit.infer.small import write_model
from tests.unit.openai.world import KEY, listening

LINES = re.findall(r"```bash\n(.*)\n```", (ROOT / "docs" / "api.md").read_text())
ERRORS = {"/v1/embeddings": "it makes no embeddings", "-X DELETE $URL/v1/models": "the one model of this server"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = write_model(tmp_path_factory.mktemp("model"))
    engine = LocalEngine(directory, dtype="float32", max_batch=4, runner="torch", threads=1)
    database = Database(tmp_path_factory.mktemp("store") / "chats.db")
    with listening(standalone(engine, "small", KEY, Completions(database, kept=10))) as url:
        yield url
    database.close()


def test_every_line_does_what_the_page_says(url: str) -> None:
    id, asked = "", set()
    for line in LINES:
        environment = {"PATH": os.environ["PATH"], "URL": url, "KEY": KEY, "ID": id}
        done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, line
        asked.add((_method(line), _path(line)))
        if line.startswith("curl -sfN"):
            assert done.stdout.rstrip().endswith("data: [DONE]") and '"cached_tokens"' in done.stdout
            continue
        answer = json.loads(done.stdout)
        expected = next((text for part, text in ERRORS.items() if part in line), None)
        assert (expected is None) == ("error" not in answer), answer
        assert expected is None or expected in answer["error"]["message"]
        if "metadata[for]" in line:
            (stored,) = answer["data"]
            id = stored["id"]
    document = httpx.get(f"{url}/v1/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).json()
    routes = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert routes - {("GET", "/healthz")} == asked - {("GET", "/v1/openapi.json")}, (
        "an endpoint without a line, or one that is no more"
    )


def _path(line: str) -> str:
    path = line.partition("$URL")[2].partition(" ")[0].partition("?")[0].strip('"')
    return path.replace("$ID", "{completion_id}").replace("/models/small", "/models/{name}")


def _method(line: str) -> str:
    return "DELETE" if "-X DELETE" in line else "POST" if " -d " in line else "GET"


def test_nothing_of_llmos_knows_the_names_of_others_tests() -> None:
    names = re.compile(r"gpt-[345]|text-embedding-3|acemeco|\"completion_id\"\s*[:=]\s*\"completion_id\"")
    files = [path for part in ("llmos", "deployments") for path in Path(ROOT, part).rglob("*.py")]
    assert files and not [path.name for path in files if names.search(path.read_text())]
