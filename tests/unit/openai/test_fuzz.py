"""Requests made from our own OpenAPI document, right and wrong ones: never a 5xx, never a dead engine."""

from __future__ import annotations

import json
from functools import cache
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.openai.conftest import Served
from tests.unit.openai.world import KEY

pytestmark = pytest.mark.timeout(3600)  # with as many examples as test-full has
HEADERS = {"Authorization": f"Bearer {KEY}"}
ODD = ("", "<|im_end|>", "\ud800", "\0", "{{ 7 * 7 }}", "small", "none", "auto")
NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20) | st.sampled_from(ODD),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=8), parts, max_size=3),
    max_leaves=6,
)
LIMITS = {"max_tokens": 4, "max_completion_tokens": 4}
"""Of what is right, answers are short."""


@cache
def _document(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/v1/openapi.json", headers=HEADERS).json()
    return found


class Making:
    """Strategies for the values that the schemas of a document allow."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._schemas = document["components"]["schemas"]

    def of(self, schema: dict[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
        if "$ref" in schema:
            return st.deferred(lambda: self.of(self._schemas[schema["$ref"].rpartition("/")[2]], depth + 1))
        if "const" in schema or "enum" in schema:
            return st.sampled_from(schema.get("enum") or [schema["const"]])
        if "anyOf" in schema:
            return st.one_of([self.of(one, depth) for one in schema["anyOf"]])
        make = getattr(self, f"_{schema.get('type', 'anything')}")
        found: st.SearchStrategy[Any] = make(schema, depth)
        return found

    def _anything(self, _schema: dict[str, Any], _depth: int) -> st.SearchStrategy[Any]:
        return ANYTHING

    def _null(self, _schema: dict[str, Any], _depth: int) -> st.SearchStrategy[Any]:
        return st.none()

    def _boolean(self, _schema: dict[str, Any], _depth: int) -> st.SearchStrategy[Any]:
        return st.booleans()

    def _string(self, schema: dict[str, Any], _depth: int) -> st.SearchStrategy[Any]:
        least = schema.get("minLength", 0)
        most = min(schema.get("maxLength", 12), 12)
        words = st.sampled_from(["f", "small", "<|im_end|>", "walk"])
        return words if "pattern" in schema else words | st.text(min_size=least, max_size=most)

    def _integer(self, schema: dict[str, Any], _depth: int) -> st.SearchStrategy[Any]:
        least, most = schema.get("minimum", -5), schema.get("maximum", schema.get("exclusiveMaximum", 300))
        return st.integers(int(least), int(most)) | st.integers(int(max(least, 0)), int(min(most, 8)))

    def _number(self, schema: dict[str, Any], _depth: int) -> st.SearchStrategy[Any]:
        least = schema.get("minimum", schema.get("exclusiveMinimum", -5))
        return st.floats(float(least), float(schema.get("maximum", 5)))

    def _array(self, schema: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
        size = {"min_size": schema.get("minItems", 0), "max_size": max(schema.get("minItems", 0), 3 - depth // 2)}
        return st.lists(self.of(schema.get("items", {}), depth + 1), **size)

    def _object(self, schema: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
        if "properties" not in schema:
            values = schema.get("additionalProperties")
            inner = self.of(values, depth + 1) if isinstance(values, dict) else ANYTHING
            return st.dictionaries(
                st.sampled_from(["1", "5", "a", "type", "properties"]) | st.text(max_size=3), inner, max_size=2
            )
        fields, needed = schema["properties"], set(schema.get("required", ()))
        required = {name: self.of(part, depth + 1) for name, part in fields.items() if name in needed}
        optional = {name: self.of(part, depth + 1) for name, part in fields.items() if name not in needed}
        some = st.sets(st.sampled_from(sorted(optional)), max_size=4) if optional else st.just(set())
        return some.flatmap(
            lambda names: st.fixed_dictionaries({**required, **{name: optional[name] for name in names}})
        )


def _body(url: str, data: st.DataObject, operation: dict[str, Any]) -> Any:
    """Something right, or something right with one part of it wrong."""
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    body = data.draw(Making(_document(url)).of(schema))
    if isinstance(body, dict):
        names = {name.rpartition("/")[2] for name in (schema.get("$ref", ""),)}
        limits = {
            name: 4 for name in LIMITS if name in _document(url)["components"]["schemas"][min(names)]["properties"]
        }
        body |= {"model": "small", **limits}
        if data.draw(st.booleans()):
            body[data.draw(st.sampled_from(sorted(body)) | st.text(max_size=8))] = data.draw(ANYTHING)
    return body


def _healthy(response: httpx.Response) -> None:
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert (
            set(response.json()["error"]) == {"message", "type", "param", "code"}
            and response.json()["error"]["message"]
        )
    assert response.headers["x-request-id"]
    assert b'"type":"server_error"' not in response.content, response.text


@given(data=st.data())
@settings(suppress_health_check=list(HealthCheck))
def test_whatever_is_asked_nothing_breaks(served: Served, http: httpx.Client, data: st.DataObject) -> None:
    routes = [
        (method, path, operation)
        for path, methods in sorted(_document(served.url)["paths"].items())
        for method, operation in methods.items()
        if path.startswith("/v1/") and "healthz" not in path
    ]
    method, path, operation = data.draw(st.sampled_from([route for route in routes if "requestBody" in route[2]]))
    text = json.dumps(_body(served.url, data, operation))
    address = f"{served.url}{path}".replace("{completion_id}", "none")
    _healthy(http.request(method, address, content=text))
    found = http.post(f"{served.url}/v1/completions", json={"model": "small", "prompt": "x", "max_tokens": 1})
    assert found.status_code == 200, "the engine is gone"


@given(body=st.binary(max_size=60) | ANYTHING.map(lambda value: json.dumps(value).encode()), path=st.text(max_size=10))
@settings(suppress_health_check=list(HealthCheck))
def test_bodies_and_addresses_that_are_none(served: Served, http: httpx.Client, body: bytes, path: str) -> None:
    for route in ("completions", "chat/completions", "embeddings", "tokenize", "detokenize", "chat/completions/x"):
        _healthy(http.post(f"{served.url}/v1/{route}", content=body))
    quoted = f"{served.url}/v1/models/{quote(path, safe='', errors='replace')}"
    for method in ("GET", "DELETE"):
        _healthy(http.request(method, quoted))


@given(query=st.dictionaries(st.sampled_from(["after", "limit", "order", "model", "metadata[a]"]), st.text(max_size=6)))
def test_queries_of_lists(served: Served, http: httpx.Client, query: dict[str, str]) -> None:
    _healthy(http.get(f"{served.url}/v1/chat/completions", params=query))
