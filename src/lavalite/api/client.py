"""/v1 as typed calls. Every error is a LavaLiteError with the server's own words (lavalite.api.transport).

All calls but `delete_entry` and `requeue` may be repeated without harm, and are, while the leader moves: a submit
carries a key that this side makes, everything else says what should be and not what should change.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from lavalite.api.models import (
    CONSOLE_HEADER,
    CancelAsk,
    Change,
    ChangePage,
    Commitment,
    ConsoleTyped,
    Definition,
    DefinitionPut,
    DefinitionResult,
    EntryPut,
    Explanation,
    Host,
    Job,
    LabelsPut,
    Node,
    NodeResources,
    Page,
    Plan,
    Pool,
    Quarantined,
    Queue,
    Reservation,
    ReservationPut,
    ReservationResult,
    Status,
    Submit,
    SubmitBatch,
    Submitted,
    Task,
)
from lavalite.api.transport import FindTargets, Target, Transport
from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError
from lavalite.model.decision import DecisionRecord

PAGE_ITEMS = 1000
FOLLOW_SILENCE_SECONDS = 60.0
"""A followed output that is silent for so long is asked for again at its offset: a dead leader says nothing."""

MAX_BREAKS = 5
"""So often in a row may an output break off without a byte."""

Model = TypeVar("Model", bound=BaseModel)

__all__ = ["Client", "FindTargets", "Target"]


@dataclass(frozen=True, slots=True)
class ConsoleStream:
    """A console that is open: the key to type with, and what is said there."""

    host: str
    key: str
    pieces: Iterator[bytes]


class Client:
    """Calls of /v1. `targets` are addresses, or a function that finds them anew for each round of tries."""

    def __init__(
        self,
        targets: FindTargets | Sequence[Target],
        *,
        timeout_seconds: float = 15.0,
        ca_path: str = "",
        clock: Clock | None = None,
    ) -> None:
        find = targets if callable(targets) else lambda: targets
        self._transport = Transport(find, timeout_seconds=timeout_seconds, ca_path=ca_path, clock=clock)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    # --- what there is ----------------------------------------------------------------------------------------

    def status(self) -> Status:
        return self._get("/v1/status", Status)

    def nodes(self) -> Iterator[Node]:
        return self._pages("/v1/nodes", Node)

    def node(self, name: str) -> Node:
        return self._get(f"/v1/nodes/{_part(name)}", Node)

    def drain(
        self,
        name: str,
        reason: str | None = None,
        *,
        deadline_seconds: int | None = None,
        no_deadline: bool = False,
        dry_run: bool = False,
    ) -> Node:
        """Place nothing more on a node, and end what runs there when the deadline has passed. Operators only.

        What is not said stays as it was said before.
        """
        asked = {
            "reason": reason,
            "deadline_seconds": deadline_seconds,
            "no_deadline": no_deadline or None,
            "dry_run": dry_run or None,
        }
        params = {name: value for name, value in asked.items() if value is not None}
        return self._send("POST", f"/v1/nodes/{_part(name)}/drain", Node, params=params)

    def undrain(self, name: str) -> Node:
        return self._send("POST", f"/v1/nodes/{_part(name)}/resume", Node)

    def drain_host(self, name: str, *, dry_run: bool = False) -> Host:
        """Start nothing new on a logical host, which stays as it is. Operators only."""
        return self._send("POST", f"/v1/hosts/{_part(name)}/drain", Host, params=_dry(dry_run))

    def resume_host(self, name: str, *, dry_run: bool = False) -> Host:
        return self._send("POST", f"/v1/hosts/{_part(name)}/resume", Host, params=_dry(dry_run))

    def apply_host(self, name: str, *, dry_run: bool = False) -> Host:
        """Compose a logical host that is reserved, or try again one that failed. Operators only."""
        return self._send("POST", f"/v1/hosts/{_part(name)}/apply", Host, params=_dry(dry_run))

    def forget(self, name: str) -> Node:
        """A node that was taken down for good is in no list any more; the node as it was. Operators only."""
        return self._send("DELETE", f"/v1/nodes/{_part(name)}", Node)

    def label(self, name: str, labels: Mapping[str, list[str] | None], *, purge: bool = False) -> Node:
        """Change labels of a node; None takes one away, `purge` all that are not named. Operators only."""
        body = LabelsPut(labels=dict(labels), purge=purge)
        return self._send("PUT", f"/v1/nodes/{_part(name)}/labels", Node, body)

    def resources(self) -> Iterator[NodeResources]:
        """What each node has, device by device, and what of it is free."""
        return self._pages("/v1/resources", NodeResources)

    def pools(self) -> Iterator[Pool]:
        return self._pages("/v1/pools", Pool)

    def pool(self, name: str) -> Pool:
        return self._get(f"/v1/pools/{_part(name)}", Pool)

    def queues(self) -> Iterator[Queue]:
        return self._pages("/v1/queues", Queue)

    def queue(self, name: str) -> Queue:
        return self._get(f"/v1/queues/{_part(name)}", Queue)

    def hosts(self) -> Iterator[Host]:
        return self._pages("/v1/hosts", Host)

    def host(self, name: str) -> Host:
        return self._get(f"/v1/hosts/{_part(name)}", Host)

    def commitments(self) -> Iterator[Commitment]:
        return self._pages("/v1/commitments", Commitment)

    def quarantine(self) -> Iterator[Quarantined]:
        """What runs on nodes and nobody knows."""
        return self._pages("/v1/quarantine", Quarantined)

    # --- the definition ---------------------------------------------------------------------------------------

    def definition(self) -> Definition:
        return self._get("/v1/definition", Definition)

    def put_definition(
        self, definition: DefinitionPut, *, dry_run: bool = False, if_version: int | None = None
    ) -> DefinitionResult:
        """Apply the whole document. Raises ConflictError where `if_version` is not the one that stands."""
        headers = {"If-Match": f'"{if_version}"'} if if_version is not None else {}
        return self._send("PUT", "/v1/definition", DefinitionResult, definition, _dry(dry_run), headers)

    def plan(self, definition: DefinitionPut) -> Plan:
        """What the logical hosts of this document would be. Changes nothing."""
        return self._send("POST", "/v1/plan", Plan, definition)

    def reservations(self, *, groups: bool = False) -> Iterator[Reservation]:
        """All of them, or only those that are compute groups."""
        return self._pages("/v1/reservations", Reservation, {"group": "true"} if groups else {})

    def reservation(self, name: str) -> Reservation:
        return self._get(f"/v1/reservations/{_part(name)}", Reservation)

    def reserve(self, name: str, ask: ReservationPut, *, dry_run: bool = False) -> ReservationResult:
        """One that is there already as it is asked for is left as it is; ConflictError where it differs."""
        return self._send("PUT", f"/v1/reservations/{_part(name)}", ReservationResult, ask, _dry(dry_run))

    def drain_reservation(self, name: str, *, dry_run: bool = False) -> Reservation:
        """Let nothing new start in it. What is kept stays so."""
        return self._send("POST", f"/v1/reservations/{_part(name)}/drain", Reservation, params=_dry(dry_run))

    def resume_reservation(self, name: str, *, dry_run: bool = False) -> Reservation:
        return self._send("POST", f"/v1/reservations/{_part(name)}/resume", Reservation, params=_dry(dry_run))

    def unreserve(self, name: str, *, dry_run: bool = False) -> ReservationResult:
        path = f"/v1/reservations/{_part(name)}"
        response = self._transport.request("DELETE", path, params=_dry(dry_run), repeatable=dry_run)
        return _parse(response, ReservationResult)

    def put_entry(self, section: str, name: str, entry: EntryPut, *, dry_run: bool = False) -> DefinitionResult:
        """`section` is pools, queues or hosts."""
        return self._send("PUT", f"/v1/{section}/{_part(name)}", DefinitionResult, entry, _dry(dry_run))

    def delete_entry(
        self, section: str, name: str, *, dry_run: bool = False, if_version: int | None = None
    ) -> DefinitionResult:
        """Raises ConflictError where `if_version` is not the definition's version that stands."""
        path = f"/v1/{section}/{_part(name)}"
        params = (_dry(dry_run) or {}) | ({} if if_version is None else {"if_version": if_version})
        response = self._transport.request("DELETE", path, params=params, repeatable=dry_run)
        return _parse(response, DefinitionResult)

    # --- jobs -------------------------------------------------------------------------------------------------

    def jobs(self, /, **filters: str) -> Iterator[Job]:
        """`filters`: state, user, queue, host, name, component, reservation."""
        return self._pages("/v1/jobs", Job, {k: v for k, v in filters.items() if v})

    def job(self, job_id: int) -> Job:
        return self._get(f"/v1/jobs/{job_id}", Job)

    def tasks(self, job_id: int, *, state: str = "") -> Iterator[Task]:
        return self._pages(f"/v1/jobs/{job_id}/tasks", Task, {"state": state} if state else {})

    def explain(self, job_id: int) -> Explanation:
        return self._get(f"/v1/explain/{job_id}", Explanation)

    def decision(self, job_id: int, task: int | None = None) -> DecisionRecord:
        """All that placement went by when it placed the task, or one of the job, for the last time."""
        params = {} if task is None else {"task": task}
        return _parse(self._transport.request("GET", f"/v1/decisions/{job_id}", params=params), DecisionRecord)

    def submit(self, jobs: Sequence[Submit], *, dry_run: bool = False) -> Submitted:
        """Submit all or none. A job without a key gets one here, so that a repeated try makes no second job."""
        keyed = [job if job.key else job.model_copy(update={"key": uuid.uuid4().hex}) for job in jobs]
        return self._send("POST", "/v1/jobs", Submitted, SubmitBatch(jobs=keyed), _dry(dry_run))

    def cancel(
        self, job_id: int, tasks: list[int] | None = None, force: bool = False, *, waiting: bool = False
    ) -> Job:
        """`tasks` are array indices; None means all. `force`: what is UNKNOWN counts as ended; `waiting`: only what
        holds nothing is to end."""
        said = {"waiting": True} if waiting else {}  # a scheduler of an earlier release does not know it
        return self._send("POST", f"/v1/jobs/{job_id}/cancel", Job, CancelAsk(tasks=tasks, force=force, **said))

    def hold(self, job_id: int) -> Job:
        return self._send("POST", f"/v1/jobs/{job_id}/hold", Job)

    def release(self, job_id: int) -> Job:
        return self._send("POST", f"/v1/jobs/{job_id}/release", Job)

    def suspend(self, job_id: int) -> Job:
        return self._send("POST", f"/v1/jobs/{job_id}/suspend", Job)

    def resume(self, job_id: int) -> Job:
        return self._send("POST", f"/v1/jobs/{job_id}/resume", Job)

    def requeue(self, job_id: int) -> Job:
        """End what runs, and start it again: the one verb that is not repeated when its answer is lost."""
        return _parse(self._transport.request("POST", f"/v1/jobs/{job_id}/requeue", repeatable=False), Job)

    def output(
        self, job_id: int, *, task: int | None = None, stream: str = "stdout", follow: bool = False, offset: int = 0
    ) -> Iterator[bytes]:
        """Bytes of a task's output from `offset`; until it ends with `follow`. Goes on where it was, if it breaks."""
        params: dict[str, Any] = {"stream": stream, "follow": str(follow).lower()}
        if task is not None:
            params["task"] = task
        path, silence = f"/v1/jobs/{job_id}/output", FOLLOW_SILENCE_SECONDS if follow else 15.0
        failures = 0
        while True:
            try:
                with self._transport.stream(
                    path, params=params | {"offset": offset}, silence_seconds=silence
                ) as body:
                    for chunk in body.iter_bytes():
                        offset += len(chunk)
                        failures = 0
                        yield chunk
                return
            except httpx.ReadTimeout:
                if not follow:
                    raise LavaLiteError(f"The output of job {job_id} stopped coming", code="timeout") from None
            except httpx.TransportError as error:
                failures += 1
                if failures > MAX_BREAKS:
                    raise LavaLiteError(f"The output of job {job_id} broke off ({error})") from None

    @contextmanager
    def console(self, host: str) -> Iterator[ConsoleStream]:
        """Be at the serial console of a virtual machine, as its only reader. Operators only.

        Another client types there: `type_console`.
        """
        path = f"/v1/hosts/{_part(host)}/console"
        with self._transport.stream(path, silence_seconds=None) as body:
            yield ConsoleStream(host, body.headers.get(CONSOLE_HEADER, ""), _unbroken(body, f"The console of {host}"))

    def type_console(self, stream: ConsoleStream, data: bytes, *, leave: bool = False) -> None:
        """Type there, or with nothing ask whether it is still open. Raises ConflictError where it is closed."""
        path = f"/v1/hosts/{_part(stream.host)}/console/{_part(stream.key)}"
        typed = ConsoleTyped(data_base64=base64.b64encode(data).decode(), leave=leave)
        self._transport.request("POST", path, body=typed.model_dump(), repeatable=not data)

    def events(self) -> Iterator[Change]:
        """Changes as they happen, until the connection ends."""
        with self._transport.stream("/v1/events", silence_seconds=FOLLOW_SILENCE_SECONDS) as body:
            for line in body.iter_lines():
                if line.startswith("data:"):
                    yield Change.model_validate_json(line.removeprefix("data:"))

    def recent(self, since: str = "", *, kinds: Sequence[str] = (), wait_seconds: float = 0) -> ChangePage:
        """What changed after the cursor `since` (`now`: from now on), waited for where there is nothing yet."""
        asked = {"since": since, "kind": ",".join(kinds), "wait_seconds": wait_seconds}
        params = {name: value for name, value in asked.items() if value}
        return _parse(self._transport.request("GET", "/v1/events/recent", params=params), ChangePage)

    # --- shared -----------------------------------------------------------------------------------------------

    def _get(self, path: str, model: type[Model]) -> Model:
        return _parse(self._transport.request("GET", path), model)

    def _send(
        self,
        method: str,
        path: str,
        model: type[Model],
        body: BaseModel | None = None,
        params: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Model:
        # What was not said is not sent: a 0 that somebody asked for is refused, one that merely stands there is not.
        content = body.model_dump(mode="json", exclude_unset=True) if body is not None else None
        response = self._transport.request(method, path, params=params, body=content, headers=headers)
        return _parse(response, model)

    def _pages(self, path: str, model: type[Model], params: dict[str, str] | None = None) -> Iterator[Model]:
        cursor: str | None = None
        while True:
            here = {"limit": PAGE_ITEMS, **(params or {}), **({"cursor": cursor} if cursor else {})}
            page = _parse(self._transport.request("GET", path, params=here), Page[model])  # type: ignore[valid-type]
            yield from page.items
            cursor = page.next_cursor
            if not cursor:
                return


def _parse(response: httpx.Response, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(response.content)
    except (ValidationError, json.JSONDecodeError) as error:
        where = f"{response.request.method} {response.request.url.path}"
        hint = "Is this a LavaLite API, and of a release near this one?"
        raise LavaLiteError(f"{where} answered what is no {model.__name__}", code="bad_answer", hint=hint) from error


def _dry(dry_run: bool) -> dict[str, Any] | None:
    return {"dry_run": "true"} if dry_run else None


def _part(name: str) -> str:
    """A name as one part of a path, whatever a person typed."""
    return quote(name, safe="")


def _unbroken(body: httpx.Response, what: str) -> Iterator[bytes]:
    try:
        yield from body.iter_bytes()
    except httpx.TransportError as error:
        raise LavaLiteError(f"{what} broke off ({error})", code="broken_off", hint="Try again.") from None
