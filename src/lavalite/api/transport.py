"""One request to whoever leads: over a Unix socket or a URL, following the leader, asked again while that is safe.

for each target: refused ──► next target          307 ──► the target it names, next
                 503, 502 ──► next target         2xx ──► done        any other ──► the error it says
                 429 ──► asked again when it says to, where there is time for that
all tried: wait a moment, look for targets anew (the leader may have moved), until the time is up
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from lavalite.api.models import ApiFault, Errors
from lavalite.base.clock import Clock, SystemClock
from lavalite.base.errors import (
    ConflictError,
    Fault,
    InputError,
    LavaLiteError,
    RefusedError,
    UnknownNameError,
    UnreachableError,
)

NOBODY_SECONDS = 3.0
"""How long to try where every target refuses the connection: long enough for a restart, short for a person."""
PAUSE_SECONDS = 0.25
MAX_REDIRECTS = 5
START_HINT = "Is it running? Start it with `lavalite up`."
TRUST_HINT = "Name the file of the cluster's authority in LAVALITE_CA."


@dataclass(frozen=True, slots=True)
class Target:
    """Where the API may be: `unix:/path` or a URL, and the bearer token to show there (a Unix socket needs none)."""

    address: str
    token: str = field(default="", repr=False)

    @property
    def socket_path(self) -> str:
        """The path of a Unix socket, empty for a URL."""
        return self.address.removeprefix("unix:") if self.address.startswith("unix:") else ""

    def moved_to(self, location: str) -> Target:
        """The target that a redirect names. Raises RefusedError where it would show the token in the clear."""
        parts = urlsplit(location)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise RefusedError(f"{self.address} sends us to {location!r}, which is no URL")
        if self.token and self.address.startswith("https:") and parts.scheme != "https":
            hint = "Give the leader's own URL with --api."
            raise RefusedError(f"{self.address} sends us to {location}, where a token would not be safe", hint=hint)
        return Target(f"{parts.scheme}://{parts.netloc}", self.token)


FindTargets = Callable[[], Sequence[Target]]
"""Called anew for each round of tries. Empty while nobody leads; raises UnreachableError where nobody is there."""


class Transport:
    """Sends requests. Not for more than one thread. Close it, or use it in a `with`."""

    def __init__(
        self,
        find: FindTargets,
        *,
        timeout_seconds: float = 15.0,
        ca_path: str = "",
        clock: Clock | None = None,
    ) -> None:
        self._find, self._timeout, self._ca_path = find, timeout_seconds, ca_path
        self._clock = clock or SystemClock()
        self._clients: dict[str, httpx.Client] = {}
        self._leader: Target | None = None
        self._answered = False

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def request(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, Any] | None = None,
        body: Any = None,
        headers: dict[str, str] | None = None,
        repeatable: bool = True,
    ) -> httpx.Response:
        """The answer (2xx). `repeatable` says that a request may be sent again although the first may have arrived.

        Raises InputError, ConflictError, RefusedError or LavaLiteError as the server says; UnreachableError when no
        leader answered in time.
        """
        request = {"params": params, "json": body, "headers": headers or {}}
        with self._answer(method, path, request, stream=False, repeatable=repeatable) as response:
            return response

    @contextmanager
    def stream(
        self, path: str, *, params: dict[str, Any] | None = None, silence_seconds: float | None
    ) -> Iterator[Any]:
        """An open GET whose body is yet to be read. Reading raises httpx errors where the connection breaks."""
        request = {"params": params, "headers": {}, "timeout": httpx.Timeout(self._timeout, read=silence_seconds)}
        with self._answer("GET", path, request, stream=True, repeatable=True) as response:
            yield response

    @contextmanager
    def _answer(
        self, method: str, path: str, request: dict[str, Any], *, stream: bool, repeatable: bool
    ) -> Iterator[httpx.Response]:
        started = self._clock.monotonic()
        while True:
            targets = self._candidates()
            # Who has answered once and now refuses is being restarted: worth more patience than who never was there.
            heard = self._answered or not targets
            problem = "" if targets else "Nobody leads the cluster at the moment"
            distrusted = False
            busy: LavaLiteError | None = None
            pause_seconds = PAUSE_SECONDS
            for target in targets:
                try:
                    response = self._follow(target, method, path, request, stream)
                except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                    problem = problem or f"{target.address} cannot be reached ({_reason(error)})"
                    distrusted = distrusted or "CERTIFICATE_VERIFY_FAILED" in str(error)
                    continue
                except httpx.TransportError as error:
                    if not repeatable:
                        raise _unknown(target, error) from None
                    heard, problem = True, f"{target.address} did not answer ({_reason(error)})"
                    continue
                if response.status_code in (502, 503):
                    heard, problem = True, _sentence_of(response)
                    response.close()
                    continue
                self._answered = True
                if response.status_code == 429 and "retry-after" in response.headers:
                    heard = True
                    busy, pause_seconds = _error_of(response), _seconds(response.headers["retry-after"])
                    response.close()
                    break
                try:
                    _raise_for(response)
                    yield response
                finally:
                    response.close()
                return
            self._leader = None
            waited = self._clock.monotonic() - started
            if waited + pause_seconds > (self._timeout if heard else min(self._timeout, NOBODY_SECONDS)):
                if busy is not None:
                    raise busy
                hint = "Try again in a moment." if heard else TRUST_HINT if distrusted else START_HINT
                raise UnreachableError(problem, hint=hint)
            time.sleep(pause_seconds)

    def _candidates(self) -> list[Target]:
        """The leader of the last answer first, while it is one."""
        if self._leader is not None:
            return [self._leader]
        return list(self._find())

    def _follow(
        self, target: Target, method: str, path: str, request: dict[str, Any], stream: bool
    ) -> httpx.Response:
        for _ in range(MAX_REDIRECTS):
            headers = dict(request["headers"])
            if target.token and not target.socket_path:
                headers["Authorization"] = f"Bearer {target.token}"
            client = self._client(target)
            sent = client.build_request(method, path, **{**request, "headers": headers})
            response = client.send(sent, stream=stream, follow_redirects=False)
            if response.status_code not in (307, 308):
                self._leader = target if response.is_success else None
                return response
            response.close()
            target = target.moved_to(response.headers.get("location", ""))
        raise UnreachableError(
            f"{target.address} and others send us round in a circle", hint="Try again in a moment."
        )

    def _client(self, target: Target) -> httpx.Client:
        if target.address not in self._clients:
            path = target.socket_path
            transport = httpx.HTTPTransport(uds=path) if path else httpx.HTTPTransport(verify=self._trust())
            self._clients[target.address] = httpx.Client(
                base_url="http://lavalite" if path else target.address,
                transport=transport,
                timeout=httpx.Timeout(self._timeout, connect=min(self._timeout, 3.0)),
                trust_env=False,
            )
        return self._clients[target.address]

    def _trust(self) -> ssl.SSLContext | bool:
        if not self._ca_path:
            return True
        try:
            return ssl.create_default_context(cafile=self._ca_path)
        except OSError as error:  # ssl.SSLError is one too
            reason = error.strerror or str(error)
            raise InputError(f"{self._ca_path} holds no certificates ({reason})", field="ca_path") from None


def faults_of(response: httpx.Response) -> list[Fault]:
    """What the body says is wrong; one made up from the status where it says nothing we know."""
    try:
        errors = Errors.model_validate_json(response.content).errors
    except ValidationError:
        errors = []
    if not errors:
        errors = [
            ApiFault(code=f"http_{response.status_code}", message=f"The server answered {response.status_code}")
        ]
    return [Fault(e.code, e.message, e.field, e.hint, e.file, e.line) for e in errors]


def _raise_for(response: httpx.Response) -> None:
    if not response.is_success:
        raise _error_of(response)


def _error_of(response: httpx.Response) -> LavaLiteError:
    """What an answer that is no success says."""
    response.read()
    faults, status = faults_of(response), response.status_code
    first = faults[0]
    if status == 404:
        return UnknownNameError(faults=faults)
    if status in (400, 413, 422):
        return InputError(faults=faults)
    kinds: dict[int, type[LavaLiteError]] = {
        401: RefusedError,
        403: RefusedError,
        409: ConflictError,
        412: ConflictError,
    }
    kind = kinds.get(status, RefusedError if status == 429 else LavaLiteError)
    error = kind(first.message, code=first.code, field=first.field, hint=first.hint)
    error.args = ("\n".join(f.sentence() for f in faults),)
    return error


def _seconds(text: str) -> float:
    """Of a Retry-After that is no number of seconds, the usual pause."""
    return max(PAUSE_SECONDS, float(text)) if text.isascii() and text.isdecimal() else PAUSE_SECONDS


def _sentence_of(response: httpx.Response) -> str:
    response.read()
    fault = faults_of(response)[0]
    return f"{fault.message.rstrip('.')}{'. ' + fault.hint.rstrip('.') if fault.hint else ''}"


def _reason(error: httpx.HTTPError) -> str:
    text = str(error)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return text or type(error).__name__


def _unknown(target: Target, error: httpx.TransportError) -> LavaLiteError:
    return LavaLiteError(
        f"{target.address} did not answer ({_reason(error)}): the change may or may not have been made",
        code="outcome_unknown",
        hint="Look before you try again.",
    )
