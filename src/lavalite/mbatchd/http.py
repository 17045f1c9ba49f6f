"""The HTTP application: who asks, what goes wrong in which words, and the routes' assembly.

Routes hold no policy: they check who may ask, hand over to the Scheduler's desks, and give back what its views say.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Annotated

import structlog
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lavalite import __version__
from lavalite.base.errors import (
    ConflictError,
    Fault,
    FencedError,
    InputError,
    LavaLiteError,
    UnknownNameError,
    UnreachableError,
)
from lavalite.mbatchd.identity import Doorman, Identity, NotAllowed, NotAuthenticated
from lavalite.mbatchd.scheduler import Scheduler

MAX_BODY_BYTES = 32 * 1024 * 1024

log = structlog.get_logger(__name__)

STATUS_CODES: list[tuple[type[LavaLiteError], int]] = [
    (NotAuthenticated, 401),
    (NotAllowed, 403),
    (UnknownNameError, 404),
    (InputError, 400),
    (ConflictError, 409),
    (FencedError, 503),
    (UnreachableError, 503),
]


def scheduler_of(request: Request) -> Scheduler:
    scheduler: Scheduler = request.app.state.scheduler
    return scheduler


def identity_of(request: Request) -> Identity:
    doorman: Doorman = request.app.state.doorman
    return doorman.identify(request)


TheScheduler = Annotated[Scheduler, Depends(scheduler_of)]
Who = Annotated[Identity, Depends(identity_of)]


def make_app(scheduler: Scheduler, doorman: Doorman) -> FastAPI:
    """The application over one scheduler."""
    from lavalite.mbatchd.routes import cluster, definition, events, jobs

    app = FastAPI(
        title="LavaLite",
        version=__version__,
        description="Pools of CPU, memory, GPU, storage and network, used as logical hosts.",
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.state.scheduler = scheduler
    app.state.doorman = doorman
    app.add_exception_handler(LavaLiteError, _our_error)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    app.middleware("http")(_limit_body)
    for router in (cluster.router, definition.router, jobs.router, events.router):
        app.include_router(router)
    return app


async def _limit_body(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_BODY_BYTES:
        fault = Fault("too_long", f"a request has at most {MAX_BODY_BYTES} bytes", hint="Send it in parts.")
        return _answer(413, [fault])
    return await call_next(request)


def _answer(status: int, faults: list[Fault], headers: dict[str, str] | None = None) -> JSONResponse:
    body = {
        "errors": [
            {"code": f.code, "message": f.message, "field": f.field, "hint": f.hint, "file": f.file, "line": f.line}
            for f in faults
        ]
    }
    return JSONResponse(body, status_code=status, headers=headers)


async def _our_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LavaLiteError)
    status = next((code for kind, code in STATUS_CODES if isinstance(error, kind)), 409)
    status = {"version_changed": 412, "too_many": 429}.get(error.code, status)
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return _answer(status, error.faults if isinstance(error, InputError) else [error.fault], headers)


async def _bad_request(request: Request, error: Exception) -> JSONResponse:
    """pydantic's findings, one fault each, with the field as a path a person would write."""
    assert isinstance(error, RequestValidationError)
    faults = []
    for found in error.errors():
        place = [str(p) for p in found["loc"] if p not in ("body", "query", "path")]
        message = str(found["msg"]).removeprefix("Value error, ")
        hint = ""
        if found["type"] == "extra_forbidden":
            message, hint = "there is no such field", "See /v1/openapi.json for those that there are."
        elif found["type"] == "json_invalid":
            message, place = "the body is not JSON", []
        faults.append(Fault("bad_input", message, ".".join(place), hint))
    return _answer(400, faults)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        fault = Fault("no_such_path", f"there is nothing at {request.url.path}", hint="See /v1/openapi.json.")
    else:
        fault = Fault("http", str(error.detail))
    return _answer(error.status_code, [fault])


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("a request failed", path=request.url.path, exc_info=error)
    return _answer(500, [Fault("internal", "Something failed here; the scheduler's log says what.")])


def server_sent(kind: str, payload: object) -> str:
    """One server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(payload, separators=(',', ':'))}\n\n"
