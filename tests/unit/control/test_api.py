from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from llmos import estimate
from llmos.control.api import create_api
from llmos.control.auth import SCOPES
from llmos.control.control import SCOPE_OF, Control
from llmos.control.http import MAX_BODY_BYTES
from llmos.errors import CapacityError, ClusterError
from tests.unit.control.world import Port, World

VALUES = {
    **{"job": "coder-1", "name": "coder", "ref": "coder@1", "alias": "prod", "id": "nobody", "sha256": "a" * 64},
    **{"node": "n0"},
}


class CountingPort(Port):
    def __init__(self, control: Control) -> None:
        super().__init__(control)
        self.calls: list[str] = []

    async def call(self, verb: str, authorization: str | None, **arguments: Any) -> Any:
        self.calls.append(verb)
        return await super().call(verb, authorization, **arguments)

    async def authorize(self, authorization: str | None, scope: str) -> dict[str, Any]:
        self.calls.append("authorize")
        return await super().authorize(authorization, scope)


@pytest.fixture
def port(world: World) -> CountingPort:
    return CountingPort(world.control)


@pytest.fixture
async def http(port: CountingPort) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_api(port))
    async with httpx.AsyncClient(transport=transport, base_url="http://llmos") as client:
        yield client


@pytest.fixture
def headers(world: World) -> dict[str, dict[str, str]]:
    """The header of a key for each scope."""
    return {
        scope: {"authorization": f"Bearer {world.control.create_key(scope, [scope])['secret']}"} for scope in SCOPES
    }


async def operations(http: httpx.AsyncClient, header: dict[str, str]) -> list[tuple[str, str, str]]:
    """(method, address, verb) of everything in the OpenAPI document."""
    document = (await http.get("/api/v1/openapi.json", headers=header)).json()
    return [
        (method.upper(), re.sub(r"\{(\w+)\}", lambda match: VALUES[match[1]], path), operation["summary"])
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


async def test_the_document_describes_every_verb(http: httpx.AsyncClient, headers: dict[str, dict[str, str]]) -> None:
    found = await operations(http, headers["infer"])
    verbs = {summary.lower().replace(" ", "_") for _, _, summary in found}
    assert verbs == {*SCOPE_OF, "openapi"} and len(found) == len(verbs)
    document = (await http.get("/api/v1/openapi.json", headers=headers["infer"])).json()
    assert all(operation["security"] for methods in document["paths"].values() for operation in methods.values())


@pytest.mark.parametrize("content", [b"", b"{}", b"{not json", b'{"spec": 1, "unknown": 2}'])
async def test_without_a_key_every_route_answers_401(
    http: httpx.AsyncClient, headers: dict[str, dict[str, str]], content: bytes
) -> None:
    wrong: tuple[dict[str, str], ...] = (
        {},
        {"authorization": "Bearer llmos_aaaaaaaa_" + "a" * 52},
        {"authorization": "Basic Og=="},
        {"host": "evil/?", "x-forwarded-prefix": "/healthz"},
    )
    for method, path, _ in await operations(http, headers["infer"]):
        for header in wrong:
            response = await http.request(method, path, headers=header, content=content)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "auth"), (method, path)
            assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/", "/api/v1", "/api/v1/nothing", "/api/v1/jobs/", "/docs", "/openapi.json"):
        assert (await http.get(path)).status_code == 401, path
    assert (await http.patch("/api/v1/jobs")).status_code == 401


async def test_too_little_scope_answers_403(http: httpx.AsyncClient, headers: dict[str, dict[str, str]]) -> None:
    for method, path, summary in await operations(http, headers["infer"]):
        needed = SCOPE_OF.get(summary.lower().replace(" ", "_"), "infer")
        for scope in SCOPES[: SCOPES.index(needed)]:
            response = await http.request(method, path, headers=headers[scope], content=b"{not json")
            assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden"), (method, path)


async def test_a_request_is_one_call(
    http: httpx.AsyncClient, headers: dict[str, dict[str, str]], port: CountingPort, world: World
) -> None:
    await http.get("/api/v1/jobs", headers=headers["submit"])
    created = await http.post("/api/v1/jobs", headers=headers["submit"], json={"spec": world.spec()})
    assert (created.status_code, created.json()["id"]) == (201, "coder-1")
    assert port.calls == ["list_jobs", "submit_job"]


async def test_an_estimate_is_that_of_python(http: httpx.AsyncClient, headers: dict[str, dict[str, str]]) -> None:
    options = {"gpus": 64, "tokens": "1T", "compile": True, "price": 2.5}
    body = {"model": "70B", "options": options}
    response = await http.post("/api/v1/estimate", headers=headers["submit"], json=body)
    assert response.status_code == 200 and response.json() == estimate("70B", **options)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("GET", "/api/v1/jobs/ghost", None, 404, "no job `ghost`"),
        ("GET", "/api/v1/jobs/ghost/logs?offset=-1", None, 400, "`offset`"),
        ("GET", "/api/v1/jobs/ghost/metrics?after=x", None, 400, "`after`"),
        ("GET", "/api/v1/jobs/ghost/description", None, 404, "no job `ghost`"),
        ("GET", "/api/v1/jobs/ghost/explanation", None, 404, "no job `ghost`"),
        ("GET", "/api/v1/jobs?state=asleep", None, 400, "no job is ever `asleep`"),
        ("GET", "/api/v1/queue?limit=0", None, 400, "`limit`"),
        ("GET", "/api/v1/queue?tenant=ghost", None, 404, "no tenant `ghost`"),
        ("PUT", "/api/v1/nodes/ghost/drain", {"why": ""}, 404, "no node `ghost`"),
        ("PUT", "/api/v1/nodes/ghost/drain", {"wy": ""}, 400, "`wy`"),
        ("DELETE", "/api/v1/nodes/ghost/drain", None, 404, "no node `ghost`"),
        ("POST", "/api/v1/jobs", {"spec": {"kind": "TrainJob"}}, 422, "`steps`"),
        ("POST", "/api/v1/jobs", {"spek": {}}, 400, "`spek`: Extra inputs are not permitted"),
        ("POST", "/api/v1/jobs", [], 400, "the request cannot be read"),
        ("PUT", "/api/v1/services/a", {"spec": {"kind": "Service", "name": "b", "model": "m"}}, 400, "same name"),
        ("PUT", "/api/v1/services/b", {"spec": {"kind": "Service", "name": "b", "model": "m"}}, 404, "no model `m`"),
        ("GET", "/api/v1/models/m@0", None, 404, "no model `m@0`"),
        ("POST", "/api/v1/models", {"name": "M!", "path": "/x"}, 400, "'M!' is not a name"),
        ("POST", "/api/v1/models", {"name": "m", "path": "x/../y"}, 400, "not an absolute path"),
        ("POST", "/api/v1/models", {"name": "m", "path": "/nothing/here"}, 404, "no directory `/nothing/here`"),
        ("DELETE", "/api/v1/models/m", None, 400, "expected `name@version`"),
        ("DELETE", "/api/v1/keys/ghost", None, 404, "no key `ghost`"),
        ("POST", "/api/v1/keys", {"name": "k", "scopes": ["root"]}, 400, "found `root`"),
        ("POST", "/api/v1/keys", {"name": "k", "tenant": "ghost"}, 404, "no tenant `ghost`"),
        ("GET", "/api/v1/tenants/ghost", None, 404, "no tenant `ghost`"),
        ("DELETE", "/api/v1/tenants/ghost", None, 404, "no tenant `ghost`"),
        ("DELETE", "/api/v1/tenants/default", None, 409, "tenant `default` stays"),
        ("PUT", "/api/v1/tenants/b", {"spec": {"kind": "Tenant", "name": "a"}}, 400, "same name"),
        ("PUT", "/api/v1/tenants/a", {"spec": {"kind": "Tenant", "name": "a", "parent": "g"}}, 404, "no such tenant"),
        ("PUT", "/api/v1/tenants/a", {"spec": {"kind": "Tenant", "name": "a", "share": 0}}, 422, "`share`"),
        ("PUT", "/api/v1/tenants/default", {"spec": {"kind": "Tenant", "name": "default"}, "new": True}, 409, "exists"),
        ("POST", "/api/v1/estimate", {"model": "8B", "options": {"gpuz": 1}}, 400, "`gpuz` is no option"),
        ("POST", "/api/v1/estimate", {"model": "8B", "options": {"mesh": "tp=3"}}, 400, "tp 3 does not divide"),
        ("POST", "/api/v1/estimate", {"model": "ghost"}, 404, "no model `ghost`"),
        ("PATCH", "/api/v1/jobs", None, 405, "not a method"),
        ("GET", "/api/v1/nothing", None, 404, "no route"),
    ],
)
async def test_bad_requests_say_what_is_wrong(
    http: httpx.AsyncClient,
    headers: dict[str, dict[str, str]],
    method: str,
    path: str,
    body: object,
    status: int,
    message: str,
) -> None:
    response = await http.request(method, path, headers=headers["admin"], json=body)
    error = response.json()["error"]
    assert response.status_code == status and message in error["message"], error
    assert set(error) == {"code", "message", "hint", "param"}


async def test_large_bodies_are_not_read(http: httpx.AsyncClient, headers: dict[str, dict[str, str]]) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(10_000):
            sent.append(1)
            yield b" " * (MAX_BODY_BYTES // 8)

    sent: list[int] = []
    response = await http.post("/api/v1/jobs", headers=headers["submit"], content=endless())
    assert response.status_code == 413 and "at most 1048576 bytes" in response.json()["error"]["message"]
    assert len(sent) < 12
    told = await http.post("/api/v1/jobs", headers=headers["submit"], content=b" " * (MAX_BODY_BYTES + 1))
    assert told.status_code == 413


async def test_errors_of_the_port_keep_their_status(
    http: httpx.AsyncClient, headers: dict[str, dict[str, str]], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, status in ((ClusterError("gone"), 503), (CapacityError("full", retry_after_s=2.5), 429)):

        def fail(error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(world.control, "status", fail)
        response = await http.get("/api/v1/status", headers=headers["admin"])
        assert response.status_code == status
    assert response.headers["retry-after"] == "3"


async def test_a_bug_is_answered_in_the_same_shape(
    port: CountingPort, headers: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port.control, "status", lambda: 1 / 0)
    transport = httpx.ASGITransport(create_api(port), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://llmos") as client:
        response = await client.get("/api/v1/status", headers=headers["admin"])
    assert response.status_code == 500 and "ZeroDivisionError" in response.json()["error"]["message"]
