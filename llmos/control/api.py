"""The control HTTP API: ``/api/v1`` as a FastAPI application over whoever carries out the verbs.

One request is one call of the port, which checks the key before it does anything. What cannot be read is told only to
those who could have asked: whoever has no valid key gets 401 whatever the request looks like.
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import Field
from starlette.exceptions import HTTPException

import llmos
from llmos.control.api_tenants import add_key_routes, add_tenant_routes, add_usage_routes
from llmos.control.control import SCOPE_OF
from llmos.control.http import PREFIX, Authorization, Body, BodyLimit, Name, error_response
from llmos.errors import LlmosError, NotFoundError, UsageError


class ControlPort(Protocol):
    """Whoever carries out the verbs: the control module itself, or a proxy to it in another process.

    ``authorization`` is the request's header as it came. Both raise leaves of ``errors``.
    """

    async def call(self, verb: str, authorization: str | None, **arguments: Any) -> Any:
        """The answer of a verb of :data:`llmos.control.control.SCOPE_OF`, if the key allows it."""

    async def authorize(self, authorization: str | None, scope: str) -> dict[str, Any]:
        """``{id, name, scopes, tenant, limits, tenant_limits}`` of a key that allows ``scope``."""


class SubmitJob(Body):
    """What ``POST /jobs`` takes."""

    spec: dict[str, Any] = Field(description="a TrainJob or a TrainFunction")
    idempotency_key: str | None = Field(None, min_length=1, max_length=200, description="the same key, the same job")
    allow_pending: bool = Field(default=False, description="accept it also if it could never start on this cluster")


class PutFunction(Body):
    pickle: str = Field(description="what cloudpickle made of the function, in base64; its SHA-256 is in the address")


class PutService(Body):
    spec: dict[str, Any] = Field(description="a Service of this name")


class WeighService(Body):
    weight: float = Field(ge=0, le=1, description="the canary's share of the requests; 0 ends it, 1 promotes it")


class SetAlias(Body):
    target: str = Field(max_length=200, description="a version of the model, or another alias of it")


class ImportModel(Body):
    name: str = Field(description="of the model; the version follows")
    path: str = Field(max_length=4096, description="a directory on the head node, in the Hugging Face layout")


class ExportModel(Body):
    path: str = Field(max_length=4096, description="a directory on the head node that does not exist yet")


class Estimate(Body):
    model: str = Field(max_length=200, description="a preset, a size such as 8B, or a registered model")
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="those of `llmos estimate`, such as gpus, deadline, requests, micro_batch"
    )


class DrainNode(Body):
    why: str = Field(default="", max_length=1000, description="for those who will wonder")


Offset = Annotated[int, Query(ge=0, le=2**53 - 1)]
Some = Annotated[str | None, Query(max_length=200)]
Limit = Annotated[int, Query(ge=1, le=10_000)]


def create_api(port: ControlPort) -> FastAPI:
    """The application; its routes begin with ``/api/v1``. Mount it at the root of the front door, after all others."""
    app = FastAPI(
        title="llmos control API",
        version=llmos.__version__,
        openapi_url=None,  # served below, to those with a key
        docs_url=None,  # these pages load scripts from strangers
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(HTTPBearer(auto_error=False))],
    )
    app.add_middleware(BodyLimit)
    _answer_errors(app, port)
    _add_job_routes(app, port)
    _add_service_routes(app, port)
    _add_model_routes(app, port)
    _add_alias_routes(app, port)
    add_key_routes(app, port)
    add_tenant_routes(app, port)
    add_usage_routes(app, port)
    _add_scheduler_routes(app, port)

    @app.post(f"{PREFIX}/estimate", name="estimate")
    async def estimate(body: Estimate, authorization: Authorization = None) -> Any:
        return await port.call("estimate", authorization, **body.model_dump())

    @app.get(f"{PREFIX}/openapi.json", name="openapi")
    async def openapi(authorization: Authorization = None) -> Any:
        await port.authorize(authorization, "infer")
        return JSONResponse(app.openapi())

    return app


def _add_job_routes(app: FastAPI, port: ControlPort) -> None:
    base = f"{PREFIX}/jobs"

    @app.post(base, name="submit_job", status_code=201)
    async def submit_job(body: SubmitJob, authorization: Authorization = None) -> Any:
        return await port.call("submit_job", authorization, **body.model_dump())

    @app.put(f"{PREFIX}/functions/{{sha256}}", name="put_function")
    async def put_function(sha256: Name, body: PutFunction, authorization: Authorization = None) -> Any:
        return await port.call("put_function", authorization, sha256=sha256, pickle=body.pickle)

    @app.get(base, name="list_jobs")
    async def list_jobs(tenant: Some = None, state: Some = None, authorization: Authorization = None) -> Any:
        return await port.call("list_jobs", authorization, tenant=tenant, state=state)

    @app.get(f"{base}/{{job}}", name="get_job")
    async def get_job(job: Name, authorization: Authorization = None) -> Any:
        return await port.call("get_job", authorization, job=job)

    @app.post(f"{base}/{{job}}/cancel", name="cancel_job")
    async def cancel_job(job: Name, authorization: Authorization = None) -> Any:
        return await port.call("cancel_job", authorization, job=job)

    @app.get(f"{base}/{{job}}/events", name="job_events")
    async def job_events(job: Name, authorization: Authorization = None) -> Any:
        return await port.call("job_events", authorization, job=job)

    @app.get(f"{base}/{{job}}/logs", name="job_logs")
    async def job_logs(job: Name, offset: Offset = 0, authorization: Authorization = None) -> Any:
        return await port.call("job_logs", authorization, job=job, offset=offset)

    @app.get(f"{base}/{{job}}/metrics", name="job_metrics")
    async def job_metrics(job: Name, after: Offset = 0, authorization: Authorization = None) -> Any:
        return await port.call("job_metrics", authorization, job=job, after=after)


def _add_service_routes(app: FastAPI, port: ControlPort) -> None:
    base = f"{PREFIX}/services"

    @app.get(base, name="list_services")
    async def list_services(authorization: Authorization = None) -> Any:
        return await port.call("list_services", authorization)

    @app.get(f"{base}/{{name}}", name="get_service")
    async def get_service(name: Name, authorization: Authorization = None) -> Any:
        return await port.call("get_service", authorization, name=name)

    @app.put(f"{base}/{{name}}", name="put_service")
    async def put_service(name: Name, body: PutService, authorization: Authorization = None) -> Any:
        return await port.call("put_service", authorization, name=name, spec=body.spec)

    @app.put(f"{base}/{{name}}/weight", name="weigh_service")
    async def weigh_service(name: Name, body: WeighService, authorization: Authorization = None) -> Any:
        return await port.call("weigh_service", authorization, name=name, weight=body.weight)

    @app.post(f"{base}/{{name}}/rollback", name="rollback_service")
    async def rollback_service(name: Name, authorization: Authorization = None) -> Any:
        return await port.call("rollback_service", authorization, name=name)

    @app.get(f"{base}/{{name}}/events", name="service_events")
    async def service_events(name: Name, authorization: Authorization = None) -> Any:
        return await port.call("service_events", authorization, name=name)

    @app.delete(f"{base}/{{name}}", name="delete_service", status_code=204)
    async def delete_service(name: Name, authorization: Authorization = None) -> None:
        await port.call("delete_service", authorization, name=name)


def _add_model_routes(app: FastAPI, port: ControlPort) -> None:
    base = f"{PREFIX}/models"

    @app.get(base, name="list_models")
    async def list_models(authorization: Authorization = None) -> Any:
        return await port.call("list_models", authorization)

    @app.post(base, name="import_model", status_code=201)
    async def import_model(body: ImportModel, authorization: Authorization = None) -> Any:
        return await port.call("import_model", authorization, **body.model_dump())

    @app.get(f"{base}/{{ref}}", name="get_model")
    async def get_model(ref: Name, authorization: Authorization = None) -> Any:
        return await port.call("get_model", authorization, ref=ref)

    @app.post(f"{base}/{{ref}}/export", name="export_model")
    async def export_model(ref: Name, body: ExportModel, authorization: Authorization = None) -> Any:
        return await port.call("export_model", authorization, ref=ref, path=body.path)

    @app.delete(f"{base}/{{ref}}", name="remove_model", status_code=204)
    async def remove_model(ref: Name, authorization: Authorization = None) -> None:
        await port.call("remove_model", authorization, ref=ref)


def _add_alias_routes(app: FastAPI, port: ControlPort) -> None:
    base = f"{PREFIX}/models/{{name}}/aliases/{{alias}}"

    @app.get(base, name="get_alias")
    async def get_alias(name: Name, alias: Name, authorization: Authorization = None) -> Any:
        return await port.call("get_alias", authorization, name=name, alias=alias)

    @app.put(base, name="set_alias")
    async def set_alias(name: Name, alias: Name, body: SetAlias, authorization: Authorization = None) -> Any:
        return await port.call("set_alias", authorization, name=name, alias=alias, target=body.target)

    @app.post(f"{base}/rollback", name="rollback_alias")
    async def rollback_alias(name: Name, alias: Name, authorization: Authorization = None) -> Any:
        return await port.call("rollback_alias", authorization, name=name, alias=alias)

    @app.delete(base, name="remove_alias", status_code=204)
    async def remove_alias(name: Name, alias: Name, authorization: Authorization = None) -> None:
        await port.call("remove_alias", authorization, name=name, alias=alias)


def _add_scheduler_routes(app: FastAPI, port: ControlPort) -> None:
    drain = f"{PREFIX}/nodes/{{node}}/drain"

    @app.get(f"{PREFIX}/status", name="status")
    async def status(authorization: Authorization = None) -> Any:
        return await port.call("status", authorization)

    @app.get(f"{PREFIX}/queue", name="list_queue")
    async def list_queue(tenant: Some = None, limit: Limit = 1000, authorization: Authorization = None) -> Any:
        return await port.call("list_queue", authorization, tenant=tenant, limit=limit)

    @app.get(f"{PREFIX}/jobs/{{job}}/description", name="describe_job")
    async def describe_job(job: Name, authorization: Authorization = None) -> Any:
        return await port.call("describe_job", authorization, job=job)

    @app.get(f"{PREFIX}/jobs/{{job}}/explanation", name="explain_job")
    async def explain_job(job: Name, authorization: Authorization = None) -> Any:
        return await port.call("explain_job", authorization, job=job)

    @app.put(drain, name="drain_node")
    async def drain_node(node: Name, body: DrainNode, authorization: Authorization = None) -> Any:
        return await port.call("drain_node", authorization, node=node, why=body.why)

    @app.delete(drain, name="undrain_node")
    async def undrain_node(node: Name, authorization: Authorization = None) -> Any:
        return await port.call("undrain_node", authorization, node=node)


def _answer_errors(app: FastAPI, port: ControlPort) -> None:
    """Every error in one shape; those found before the port was asked only for those with a key."""

    async def refuse(request: Request, error: LlmosError, status: int | None = None) -> Response:
        scope = SCOPE_OF.get(getattr(request.scope.get("route"), "name", ""), "infer")
        try:
            await port.authorize(request.headers.get("authorization"), scope)
        except LlmosError as denied:
            return error_response(denied)
        return error_response(error, status)

    @app.exception_handler(LlmosError)
    async def told(_request: Request, error: LlmosError) -> Response:
        return error_response(error)

    @app.exception_handler(Exception)
    async def broken(_request: Request, error: Exception) -> Response:
        # the server logs it with its traceback: a handler of `Exception` only chooses the answer
        what = f"llmos failed to answer: {type(error).__name__}"
        return error_response(LlmosError(what, hint="the front door's log has the traceback; please report it"))

    @app.exception_handler(RequestValidationError)
    async def unreadable(request: Request, error: RequestValidationError) -> Response:
        return await refuse(request, _explain(error))

    @app.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException) -> Response:
        where = f"{request.method} {request.url.path[:200]}"
        hint = f"see {PREFIX}/openapi.json"
        if error.status_code == 405:
            return await refuse(request, UsageError(f"{where}: not a method of this address", hint=hint), 405)
        return await refuse(request, NotFoundError(f"no route {where}", hint=hint), error.status_code)


def _explain(error: RequestValidationError) -> UsageError:
    """Every problem of a request, by the field's path. What was sent is not repeated."""
    problems = [(".".join(str(part) for part in found["loc"][1:]), str(found["msg"])) for found in error.errors()]
    text = "; ".join(f"`{where}`: {what}" if where else what for where, what in problems)
    return UsageError(f"the request cannot be read: {text}", hint=f"see {PREFIX}/openapi.json", param=problems[0][0])
