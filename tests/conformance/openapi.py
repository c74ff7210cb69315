"""schemathesis over the parts of OpenAI's OpenAPI document that we have: no 5xx, and answers of the documented form.

Generated requests would name models that are nowhere, so ``model`` may only be one that is served, and the id of a
stored chat one that is there. What is answered with an error is no part of OpenAI's document; that it has an error's
form is asked by our own tests.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.conformance.app import ENCODER, KEY, MODEL, STORED
from tests.conformance.environments import SCHEMATHESIS

PATHS = (
    *("/chat/completions", "/chat/completions/{completion_id}", "/chat/completions/{completion_id}/messages"),
    *("/completions", "/embeddings", "/models", "/models/{model}"),
)
CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"
_REF = re.compile(r"#/components/schemas/(.*)")


def reduced(document: dict[str, Any]) -> dict[str, Any]:
    """The paths that we have, and the schemas that they need."""
    paths = {path: document["paths"][path] for path in PATHS}
    wanted: dict[str, Any] = {}
    _collect(paths, document["components"]["schemas"], wanted)
    found = {
        "openapi": document["openapi"],
        "info": document["info"],
        "paths": paths,
        "components": {"schemas": wanted},
    }
    for path, model in (("/completions", MODEL), ("/chat/completions", MODEL), ("/embeddings", ENCODER)):
        body = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        _name_model(body, wanted, model)
    for path, name, value in (
        ("/models/{model}", "model", MODEL),
        *((path, "completion_id", STORED) for path in PATHS[1:3]),
    ):
        for operation in paths[path].values():
            for parameter in operation.get("parameters", ()) if isinstance(operation, dict) else ():
                if parameter.get("name") == name:
                    parameter["schema"] = {"type": "string", "enum": [value]}
    return found


def _collect(value: Any, schemas: dict[str, Any], wanted: dict[str, Any]) -> None:
    if isinstance(value, dict):
        if isinstance(ref := value.get("$ref"), str) and (match := _REF.match(ref)) and match[1] not in wanted:
            wanted[match[1]] = schemas[match[1]]
            _collect(schemas[match[1]], schemas, wanted)
        for part in value.values():
            _collect(part, schemas, wanted)
    elif isinstance(value, list):
        for part in value:
            _collect(part, schemas, wanted)


def _name_model(schema: dict[str, Any], schemas: dict[str, Any], model: str) -> None:
    """Have the property ``model`` of a request be ``model``."""
    if isinstance(ref := schema.get("$ref"), str) and (match := _REF.match(ref)):
        return _name_model(schemas[match[1]], schemas, model)
    for part in schema.get("allOf", ()):
        _name_model(part, schemas, model)
    if "model" in schema.get("properties", {}):
        schema["properties"]["model"] = {"type": "string", "enum": [model]}


def run(document: Path, url: str, examples: int) -> tuple[bool, str]:
    """Whether all is well, and schemathesis' own words."""
    schema = SCHEMATHESIS.directory / "openapi.json"
    schema.write_text(json.dumps(reduced(yaml.load(document.read_text(), Loader=yaml.CSafeLoader))))
    command = [
        *(SCHEMATHESIS.run, "-m", "schemathesis.cli", "run", str(schema), "--url", f"{url}/v1"),
        *("-H", f"Authorization: Bearer {KEY}", "--checks", CHECKS, "--max-examples", str(examples)),
        *("--phases", "examples,coverage,fuzzing", "--seed", "1", "--generation-database", "none", "--no-color"),
    ]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run(command, cwd=SCHEMATHESIS.directory, env=environment, capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr
