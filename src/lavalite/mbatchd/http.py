"""The HTTP application: who asks, what goes wrong in which words, and the routes' assembly.

Routes hold no policy: they check who may ask, hand over to the Scheduler's desks, and give back what its views say.
"""

from __future__ import annotations

from typing import Annotated, Any

import structlog
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from lavalite import __version__
from lavalite.base.errors import (
    BusyError,
    ConflictError,
    Fault,
    FencedError,
    InputError,
    LavaLiteError,
    UnknownNameError,
    UnreachableError,
)
from lavalite.mbatchd.answers import fault_answer
from lavalite.mbatchd.gate import TOO_LONG, Gate
from lavalite.mbatchd.identity import Doorman, Identity, NotAllowed, NotAuthenticated
from lavalite.mbatchd.scheduler import Scheduler
from lavalite.model.amounts import NEGATIVE, NOTHING, NOTHING_HINT, TOO_LARGE
from lavalite.model.job import MAX_AMOUNT

log = structlog.get_logger(__name__)

STATUS_CODES: list[tuple[type[LavaLiteError], int]] = [
    (NotAuthenticated, 401),
    (NotAllowed, 403),
    (UnknownNameError, 404),
    (InputError, 400),
    (ConflictError, 409),
    (BusyError, 429),
    (FencedError, 503),
    (UnreachableError, 503),
]


# Coroutines, since a plain function would be sent to a thread for each request.
async def scheduler_of(request: Request) -> Scheduler:
    scheduler: Scheduler = request.app.state.scheduler
    return scheduler


async def identity_of(request: Request) -> Identity:
    """Whom the gate let in."""
    identity: Identity = request.state.identity
    return identity


TheScheduler = Annotated[Scheduler, Depends(scheduler_of)]
Who = Annotated[Identity, Depends(identity_of)]


def make_app(scheduler: Scheduler, doorman: Doorman) -> FastAPI:
    """The application over one scheduler."""
    from lavalite.mbatchd.routes import cluster, definition, events, health, hosts, jobs, nodes, reservations

    app = FastAPI(
        title="LavaLite",
        version=__version__,
        description="Pools of CPU, memory, GPU, storage and network, used as logical hosts.",
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.state.scheduler = scheduler
    app.add_exception_handler(LavaLiteError, _our_error)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    app.add_middleware(Gate, doorman=doorman)
    for routes in (health, cluster, nodes, reservations, hosts, definition, jobs, events):
        app.include_router(routes.router)
    return app


async def _our_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LavaLiteError)
    status = next((code for kind, code in STATUS_CODES if isinstance(error, kind)), 409)
    status = {"version_changed": 412}.get(error.code, status)
    seconds = error.retry_after_seconds if isinstance(error, BusyError) else 1
    headers = {"Retry-After": str(seconds)} if status in (429, 503) else None
    return fault_answer(status, error.faults if isinstance(error, InputError) else [error.fault], headers)


async def _bad_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return fault_answer(400, [_fault_of(found) for found in error.errors()])


def _fault_of(found: Any) -> Fault:
    """What pydantic found, with the field as a path a person would write, and in the words that amounts have."""
    kind, limits = found["type"], found.get("ctx", {})
    place = ".".join(str(p) for p in found["loc"] if p not in ("body", "query", "path"))
    typed = str(found.get("input"))[:40]
    if kind == "extra_forbidden":
        return Fault("bad_input", "there is no such field", place, "See /v1/openapi.json for those that there are.")
    if kind == "json_invalid":
        return Fault("bad_input", "the body is not JSON")
    if kind == "zero_amount":
        return Fault("zero_amount", NOTHING.format(typed), place, NOTHING_HINT)
    if kind == "greater_than_equal" and limits.get("ge") == 0:
        return Fault("negative_amount", NEGATIVE.format(typed), place, "Write more than 0.")
    if kind in ("less_than_equal", "int_parsing_size") and limits.get("le", MAX_AMOUNT) == MAX_AMOUNT:
        return Fault("out_of_range", TOO_LARGE.format(typed), place, "Write a smaller amount.")
    return Fault("bad_input", str(found["msg"]).removeprefix("Value error, "), place)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        fault = Fault("no_such_path", f"there is nothing at {request.url.path}", hint="See /v1/openapi.json.")
    elif error.status_code == 413:
        fault = TOO_LONG
    else:
        fault = Fault("http", str(error.detail))
    return fault_answer(error.status_code, [fault])


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("a request failed", path=request.url.path, exc_info=error)
    return fault_answer(500, [Fault("internal", "Something failed here; the scheduler's log says what.")])
