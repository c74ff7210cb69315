"""schemathesis over the parts of OpenAI's OpenAPI document that we have: no 5xx, and answers of the documented form.

Generated requests would name models that are nowhere, so ``model`` may only be one that is served, and the id of a
stored chat one that is there. What is answered with an error is no part of OpenAI's document; that it has an error's
form is asked by our own tests.
"""

from __future__ import annotations

import copy
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
_REF = re.compile(r"#/components/(\w+)/(.*)")


def reduced(document: dict[str, Any]) -> dict[str, Any]:
    """The paths that we have, and the components that they need."""
    paths = {path: document["paths"][path] for path in PATHS}
    wanted: dict[str, dict[str, Any]] = {}
    _collect(paths, document["components"], wanted)
    for path, model in (("/completions", MODEL), ("/chat/completions", MODEL), ("/embeddings", ENCODER)):
        body = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        _name_model(body, wanted["schemas"], model)
    for path, value in (("/models/{model}", MODEL), *((path, STORED) for path in PATHS[1:3])):
        for operation in paths[path].values():
            for parameter in operation["parameters"]:
                if parameter["in"] == "path":
                    parameter["schema"] = {"type": "string", "enum": [value]}
    _complete(wanted["schemas"])
    return {"openapi": document["openapi"], "info": document["info"], "paths": paths, "components": wanted}


def _collect(value: Any, components: dict[str, Any], wanted: dict[str, dict[str, Any]]) -> None:
    if isinstance(value, dict):
        if isinstance(ref := value.get("$ref"), str) and (match := _REF.match(ref)):
            kind, name = match.groups()
            if name not in wanted.setdefault(kind, {}):
                wanted[kind][name] = components[kind][name]
                _collect(wanted[kind][name], components, wanted)
        for part in value.values():
            _collect(part, components, wanted)
    elif isinstance(value, list):
        for part in value:
            _collect(part, components, wanted)


def _name_model(schema: dict[str, Any], schemas: dict[str, Any], model: str) -> None:
    """Have the property ``model`` of a request be ``model``."""
    if isinstance(ref := schema.get("$ref"), str) and (match := _REF.match(ref)):
        return _name_model(schemas[match[2]], schemas, model)
    for part in schema.get("allOf", ()):
        _name_model(part, schemas, model)
    if "model" in schema.get("properties", {}):
        schema["properties"]["model"] = {"type": "string", "enum": [model]}


def _complete(schemas: dict[str, Any]) -> None:
    """What the document's own texts and examples have, and its schemas have not: messages of users in a stored chat,
    and vectors in base64."""
    message = copy.deepcopy(schemas["ChatCompletionResponseMessage"])
    message["properties"]["role"] = {"type": "string"}
    schemas["StoredMessage"] = message
    parts = schemas["ChatCompletionMessageList"]["properties"]["data"]["items"]["allOf"]
    parts[0] = {"$ref": "#/components/schemas/StoredMessage"}
    fields = schemas["Embedding"]["properties"]
    fields["embedding"] = {"anyOf": [fields["embedding"], {"type": "string"}]}


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
