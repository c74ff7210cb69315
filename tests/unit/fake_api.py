"""A cluster's HTTP API in memory: the contract of docs/architecture.md without a cluster behind it.

``FakeApi`` is the handler of an ``httpx.MockTransport``. It records every request, answers from plain lists that tests
may fill, and can be told to fail first: ``api.trouble`` holds exceptions to raise or responses to give, one per call.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx

KEY = "llmos_test_secret"
JOB_SPEC = {
    "kind": "TrainJob",
    "name": "coder",
    "model": {"preset": "tiny"},
    "data": {"path": "/text/*.py"},
    "steps": 100,
    "output": {"model": "coder"},
}
Row = dict[str, Any]


def error(
    status: int, code: str, message: str, hint: str = "", headers: dict[str, str] | None = None
) -> httpx.Response:
    body = {"error": {"code": code, "message": message, "hint": hint, "param": None}}
    return httpx.Response(status, json=body, headers=headers)


def _amount(cpus: float, gpus: float, memory_bytes: int) -> Row:
    return {"cpus": cpus, "gpus": gpus, "memory_bytes": memory_bytes, "custom": {}}


NODE: Row = {
    **{"id": "0123456789abcdef", "state": "alive", "why": "", "draining": False, "drained": False, "kind": ""},
    **{"labels": {}, "total": _amount(8, 1, 2 * 10**9), "used": _amount(2.5, 1, 0), "foreign": _amount(1, 0, 0)},
}
STATUS: Row = {
    "control": {"pid": 42, "version": "0.1.0", "error": "", "started_at": 0.0, "uptime_s": 75.0},
    "nodes": [NODE],
    "gpus": {"total": 1.0, "used": 1.0, "lent": 0.0, "foreign": 0.0, "free": 0.0, "closed": 0.0},
    "cpus": {"total": 8.0, "used": 2.5, "lent": 0.0, "foreign": 1.0, "free": 4.5, "closed": 0.0},
    "jobs": {"queued": 1, "running": 2, "failed": 0},
    "queues": [
        {
            **{"tenant": "default", "running": 2, "waiting": 1, "cpus": 2.5, "gpus": 1.0},
            **{"share": 1.0, "guaranteed": 1.0},
        }
    ],
    "waiting": {"coder-3": "needs 1 bundle of 1 GPU"},
    "services": [{"name": "coder", "model": "coder@1", "phase": "ready", "replicas": 1, "ready": 1}],
}


class FakeApi:
    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.trouble: list[Exception | httpx.Response] = []
        self.jobs: list[Row] = []
        self.services: dict[str, Row] = {}
        self.models: list[Row] = []
        self.keys: list[Row] = []
        self.tenants: dict[str, Row] = {"default": tenant({"name": "default", "share": 1.0})}
        self.events: list[Row] = []
        self.status: Row = STATUS
        self.outlook: Row = {"nodes": [], "after": []}  # what a description adds to the view of a job
        self.explanation: Row = {}
        self.drained: dict[str, str] = {}
        self.rows: dict[str, list[Row]] = {}
        self.log = ""
        self.steps_per_look = 50  # how far a job gets between two looks at it
        self.fate = "succeeded"

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.trouble:
            trouble = self.trouble.pop(0)
            if isinstance(trouble, Exception):
                raise trouble
            return trouble
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return error(401, "auth", "the API key is not valid", "create one with `llmos keys create`")
        body = json.loads(request.content) if request.content else {}
        for pattern, answer in self.routes().items():
            if match := re.fullmatch(pattern, f"{request.method} {request.url.path}"):
                return answer(*match.groups(), **({"body": body} if body else {}))
        return error(404, "not_found", f"no route {request.url.path}")

    def routes(self) -> dict[str, Callable[..., httpx.Response]]:
        job, name = r"/api/v1/jobs/([^/]+)", r"([^/]+)"
        return {
            "POST /api/v1/jobs": self.submit,
            "GET /api/v1/jobs": self.list_jobs,
            f"PUT /api/v1/functions/{name}": lambda sha256, body: ok({"sha256": sha256}),
            f"GET {job}": self.look,
            f"POST {job}/cancel": self.cancel,
            f"GET {job}/description": self.describe,
            f"GET {job}/explanation": self.explain,
            "GET /api/v1/queue": self.queue,
            f"PUT /api/v1/nodes/{name}/drain": self.drain,
            f"DELETE /api/v1/nodes/{name}/drain": self.undrain,
            f"GET {job}/events": lambda _: ok(self.events),
            f"GET {job}/metrics": self.metrics,
            f"GET {job}/logs": self.logs,
            "GET /api/v1/services": lambda: ok(list(self.services.values())),
            f"GET /api/v1/services/{name}": self.service,
            f"PUT /api/v1/services/{name}": self.serve,
            f"PUT /api/v1/services/{name}/weight": self.weigh,
            f"POST /api/v1/services/{name}/rollback": self.roll_back,
            f"GET /api/v1/services/{name}/events": lambda _: ok(self.events),
            f"GET /api/v1/models/{name}/aliases/{name}": lambda name, alias: ok(self.alias(name, alias)),
            f"PUT /api/v1/models/{name}/aliases/{name}": self.set_alias,
            f"POST /api/v1/models/{name}/aliases/{name}/rollback": self.set_alias,
            f"DELETE /api/v1/models/{name}/aliases/{name}": lambda name, alias: httpx.Response(204),
            f"DELETE /api/v1/services/{name}": lambda which: ok(self.services.pop(which)),
            "GET /api/v1/models": lambda: ok(self.models),
            "POST /api/v1/models": self.import_model,
            f"GET /api/v1/models/{name}": self.model,
            f"POST /api/v1/models/{name}/export": lambda ref, body: ok({"ref": ref, **body}),
            f"DELETE /api/v1/models/{name}": self.remove_model,
            "GET /api/v1/tenants": lambda: ok(list(self.tenants.values())),
            f"GET /api/v1/tenants/{name}": self.look_at_tenant,
            f"PUT /api/v1/tenants/{name}": self.put_tenant,
            f"DELETE /api/v1/tenants/{name}": self.remove_tenant,
            "GET /api/v1/keys": lambda: ok(self.keys),
            "POST /api/v1/keys": self.create_key,
            f"PATCH /api/v1/keys/{name}": self.limit_key,
            f"DELETE /api/v1/keys/{name}": self.revoke_key,
            "GET /api/v1/usage": self.usage,
            "GET /api/v1/status": lambda: ok(self.status),
            "POST /v1/completions": complete,
            "POST /v1/chat/completions": lambda body: ok(
                {"choices": [{"message": {"content": f"re: {body['messages'][-1]['content']}"}}]}
            ),
        }

    def add_job(self, name: str = "coder", **fields: Any) -> Row:
        number = len(self.jobs) + 1
        job = {
            **{"id": f"{name}-{number}", "name": name, "phase": "queued", "reason": "", "attempt": 0, "attempts": 0},
            **{"created_at": time.time() - 60, "started_at": None, "ended_at": None, "step": 0, "steps": 100},
            **{"metrics": {}, "model": None, "spec": JOB_SPEC, "tenant": "default", "priority": 0},
            **{"gang": {"text": "1 bundle of 1 CPU", "bundles": 1, "cpus": 1.0, "gpus": 0.0}},
            **{"place": None, "estimated_start": None},
        }
        self.jobs.append(job | fields)
        return self.jobs[-1]

    def list_jobs(self) -> httpx.Response:
        wanted = {{"state": "phase"}.get(name, name): value for name, value in self.requests[-1].url.params.items()}
        found = [job for job in self.jobs[::-1] if all(job[name] == value for name, value in wanted.items())]
        return ok(found)

    def describe(self, which: str) -> httpx.Response:
        job = self.find(which)
        if job is None:
            return error(404, "not_found", f"no job `{which}`", "see `llmos jobs`")
        return ok(job | {"events": self.events} | self.outlook)

    def explain(self, which: str) -> httpx.Response:
        job = self.find(which)
        if job is None:
            return error(404, "not_found", f"no job `{which}`", "see `llmos jobs`")
        nothing = {"place": None, "turn": None, "ways": [], "next_release": None, "trials": 0, "limited": ""}
        head = {name: job[name] for name in ("id", "phase", "reason", "estimated_start")}
        return ok({**head, **nothing, "error": "", **self.explanation})

    def queue(self) -> httpx.Response:
        params = self.requests[-1].url.params
        fields = ("id", "tenant", "priority", "gang", "reason", "place", "estimated_start")
        waiting = [
            {"turn": turn, "submitted_at": job["created_at"], **{name: job[name] for name in fields}}
            for turn, job in enumerate((job for job in self.jobs if job["phase"] == "queued"), start=1)
            if params.get("tenant") in (None, job["tenant"])
        ]
        shown = waiting[: int(params["limit"])]
        closed = {"quarantined": {"n9": "2 jobs failed on it"}, "drained": self.drained}
        return ok({"total": len(waiting), "jobs": shown, **closed, "error": ""})

    def drain(self, node: str, body: Row) -> httpx.Response:
        self.drained[node] = body["why"]
        return self.node(node)

    def undrain(self, node: str) -> httpx.Response:
        self.drained.pop(node, None)
        return self.node(node)

    def node(self, node: str) -> httpx.Response:
        drained = node in self.drained
        state = {"drained": drained, "since": 1_700_000_000.0 if drained else None, "why": self.drained.get(node, "")}
        return ok({"id": node, **state, "jobs": ["coder-1"], "services": ["chat"], "events": []})

    def submit(self, body: Row) -> httpx.Response:
        key = body["idempotency_key"]
        job = next((job for job in self.jobs if job.get("key") == key), None)
        job = job or self.add_job(
            body["spec"]["name"], steps=body["spec"]["steps"], spec=body["spec"], key=key, created_at=time.time()
        )
        return ok(job, 201)

    def find(self, job: str) -> Row | None:
        return next((row for row in reversed(self.jobs) if job in (row["id"], row["name"])), None)

    def look(self, which: str) -> httpx.Response:
        """A look at a job moves it on, so that tests need neither threads nor clocks."""
        job = self.find(which)
        if job is None:
            return error(404, "not_found", f"no job `{which}`", "see `llmos jobs`")
        if job["phase"] == "queued":
            job |= {"phase": "running", "attempt": 1, "attempts": 1, "started_at": time.time()}
        elif job["phase"] == "running":
            self.train(job)
        return ok(job)

    def train(self, job: Row) -> None:
        job["step"] = min(job["steps"], job["step"] + self.steps_per_look)
        job["metrics"] = row(job["step"])
        self.rows.setdefault(job["id"], []).append(job["metrics"])
        if job["step"] == job["steps"]:
            model = f"{job['name']}@1" if self.fate == "succeeded" else None
            job |= {"phase": self.fate, "ended_at": time.time(), "model": model}
            job["reason"] = "" if self.fate == "succeeded" else "attempt 1 failed: ValueError: boom"

    def cancel(self, which: str) -> httpx.Response:
        job = self.find(which)
        if job is None:
            return error(404, "not_found", f"no job `{which}`", "see `llmos jobs`")
        job["phase"] = "cancelled"
        return ok(job)

    def metrics(self, which: str) -> httpx.Response:
        after = int(self.requests[-1].url.params["after"])
        return ok({"rows": [row for row in self.rows.get(which, []) if row["step"] > after], "final": True})

    def logs(self, which: str) -> httpx.Response:
        """At most 8 characters at a time, so that readers meet lines in pieces."""
        job, offset = self.find(which), int(self.requests[-1].url.params["offset"])
        piece = self.log[offset : offset + 8]
        return ok(
            {"text": piece, "offset": offset + len(piece), "final": job is not None and job["phase"] != "running"}
        )

    def serve(self, name: str, body: Row) -> httpx.Response:
        wanted = body["spec"]["replicas"]["min"]
        self.services[name] = {
            **{"name": name, "model": body["spec"]["model"], "phase": "starting", "replicas": wanted, "ready": 0},
            **{"message": "loading weights", "created_at": time.time(), "spec": body["spec"]},
        }
        return ok(self.services[name])

    def service(self, name: str) -> httpx.Response:
        if name not in self.services:
            return error(404, "not_found", f"no service `{name}`", "see `llmos services`")
        before = dict(self.services[name])
        self.services[name] |= {"phase": "ready", "ready": before["replicas"], "message": ""}
        return ok(before)

    def weigh(self, name: str, body: Row) -> httpx.Response:
        spec = self.services[name]["spec"]
        spec["canary"] = spec["canary"] | body if body["weight"] else None
        return ok(self.services[name])

    def roll_back(self, name: str) -> httpx.Response:
        return ok(self.services[name] | {"revision": 1})

    def alias(self, name: str, alias: str) -> Row:
        history = [
            {"version": 1, "created_at": time.time() - 60, "undone_at": None},
            {"version": 2, "created_at": time.time() - 30, "undone_at": time.time()},
        ]
        return self.models[0] | {"alias": f"{name}@{alias}", "history": history}

    def set_alias(self, name: str, alias: str, body: Row | None = None) -> httpx.Response:
        return ok(self.alias(name, alias) | {"ref": f"{name}@{(body or {'target': 1})['target']}"})

    def add_model(self, name: str = "coder", version: int = 1) -> Row:
        model = {
            **{"ref": f"{name}@{version}", "name": name, "version": version, "digest": "0123456789abcdef" * 4},
            **{
                "created_at": time.time() - 3600,
                "size_bytes": 9_200_000,
                "parameters": 2_300_000,
                "path": f"/models/{name}",
            },
            **{"lineage": {"job": "coder-1", "metrics": {"bits_per_byte": 1.5}}, "aliases": ["prod"]},
        }
        self.models.append(model)
        return model

    def model(self, ref: str) -> httpx.Response:
        found = next((model for model in self.models if ref in (model["ref"], model["name"])), None)
        return ok(found) if found else error(404, "not_found", f"no model `{ref}`", "see `llmos models`")

    def import_model(self, body: Row) -> httpx.Response:
        return ok(self.add_model(body["name"]) | {"path": body["path"]}, 201)

    def remove_model(self, ref: str) -> httpx.Response:
        if any(service["model"] == ref for service in self.services.values()):
            return error(409, "conflict", f"model `{ref}` is in use by a service", "remove the service first")
        self.models = [model for model in self.models if model["ref"] != ref]
        return httpx.Response(204)

    def look_at_tenant(self, name: str) -> httpx.Response:
        found = self.tenants.get(name)
        return ok(found) if found else error(404, "not_found", f"no tenant `{name}`", "see `llmos tenants`")

    def put_tenant(self, name: str, body: Row) -> httpx.Response:
        if body["new"] and name in self.tenants:
            return error(409, "conflict", f"tenant `{name}` exists already")
        self.tenants[name] = tenant(body["spec"])
        return ok(self.tenants[name])

    def remove_tenant(self, name: str) -> httpx.Response:
        if any(key["tenant"] == name for key in self.keys):
            return error(409, "conflict", f"tenant `{name}` is still in use", "revoke the keys")
        return httpx.Response(204) if self.tenants.pop(name, None) else self.look_at_tenant(name)

    def create_key(self, body: Row) -> httpx.Response:
        key = {"id": f"k{len(self.keys)}", "created_at": time.time(), "revoked_at": None, **body}
        self.keys.append(key)
        return ok(key | {"secret": f"llmos_{key['id']}_hush"}, 201)

    def limit_key(self, which: str, body: Row) -> httpx.Response:
        key = next((key for key in self.keys if which in (key["id"], key["name"])), None)
        if key is None:
            return error(404, "not_found", f"no key `{which}`", "see `llmos keys`")
        merged = {**key["limits"], **body["limits"]}
        key["limits"] = {name: most for name, most in merged.items() if most is not None}
        return ok(key)

    def usage(self) -> httpx.Response:
        params = self.requests[-1].url.params
        used = {"requests": 1200, "failed": 1, "abandoned": 2, "prompt_tokens": 34_567, "cached_tokens": 12_000}
        used |= {"completion_tokens": 8900}
        whose = {"day": "2026-01-31", "tenant": "default", "key": "k0", "service": "chat", "model": "coder@1"}
        rows = [{group: whose[group] for group in params.get_list("by")} | used] if self.keys else []
        for row in rows:
            row |= {"key_name": self.keys[0]["name"]} if "key" in row else {}
        return ok({"since": params["since"], "by": params.get_list("by"), "rows": rows, "total": used})

    def revoke_key(self, key_id: str) -> httpx.Response:
        next(key for key in self.keys if key["id"] == key_id)["revoked_at"] = time.time()
        return httpx.Response(204)


def tenant(spec: Row) -> Row:
    return {
        **{name: spec.get(name) for name in ("name", "parent", "share", "borrow_limit", "quota", "budget")},
        **{"running": 1, "waiting": 2, "held": _amount(1, 4, 0), "used_gpu_hours": 12.5, "spec": spec},
    }


def row(step: int) -> Row:
    return {
        **{"step": step, "loss": 8 / (1 + step / 50), "learning_rate": 1e-3, "grad_norm": 1.0},
        **{"tokens_per_s": 9600.0, "tokens": step * 1024, "time_s": step * 0.1},
    }


def complete(body: Row) -> httpx.Response:
    text = f"{body['prompt']} and so on"
    if not body.get("stream"):
        return ok({"choices": [{"text": text}]})
    chunks = [json.dumps({"choices": [{"index": 0, "text": piece}]}) for piece in (text[:5], text[5:])]
    events = "".join(f"data: {chunk}\n\n" for chunk in [*chunks, "[DONE]"])
    return httpx.Response(200, content=events, headers={"content-type": "text/event-stream"})


def ok(body: object, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=body)


@contextmanager
def listening(api: FakeApi) -> Iterator[str]:
    """``api`` behind a real port of this machine, for commands that run as processes. Yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = httpx.Request(
                self.command, f"http://fake{self.path}", headers=dict(self.headers), content=content
            )
            response = api(request)
            self.send_response(response.status_code)
            self.send_header("Content-Type", response.headers.get("content-type", "text/plain"))
            self.send_header("Content-Length", str(len(response.content)))
            self.end_headers()
            self.wfile.write(response.content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet: requests are in ``api.requests``."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
