"""An API server of Kubernetes as far as ComputeGroups use one, after the API's documentation, in this process.

kmock carries HTTP, reads the URLs and keeps what was asked. Here is the state behind it: versions, conflicts,
watches, selectors. Scheduler, kubelet, DRA driver, evictions and the controllers of deployments are in kube_played.
`fail` makes answers go wrong on purpose; `rules` are rights as in a Role: whatever is beyond them is 403.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp.web
import kmock
from kube_played import Played

Json = dict[str, Any]
NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
MOST_BYTES = 1_500_000
REASONS = {
    400: "BadRequest",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    413: "RequestEntityTooLarge",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
}
KINDS = {
    ("", "nodes"): ("v1", "Node", False),
    ("", "pods"): ("v1", "Pod", True),
    ("", "configmaps"): ("v1", "ConfigMap", True),
    ("apps", "deployments"): ("v1", "Deployment", True),
    ("policy", "poddisruptionbudgets"): ("v1", "PodDisruptionBudget", True),
    ("resource.k8s.io", "resourceslices"): ("v1", "ResourceSlice", False),
    ("resource.k8s.io", "resourceclaims"): ("v1", "ResourceClaim", True),
    ("lavalite.io", "computegroups"): ("v1", "ComputeGroup", True),
}


class Refused(Exception):
    def __init__(self, code: int, message: str, *, reason: str = "", retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code, self.reason, self.retry_after = code, reason or REASONS[code], retry_after

    def status(self) -> Json:
        details = {"retryAfterSeconds": self.retry_after} if self.retry_after is not None else {}
        kinds = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        return kinds | {"message": str(self), "reason": self.reason, "details": details, "code": self.code}


class Key(NamedTuple):
    group: str
    plural: str
    namespace: str
    name: str


@dataclass
class Fault:
    verb: str
    plural: str
    what: int | str
    """A status, or `silence`, or `cut`."""
    times: int
    done: bool
    """Whether the request is carried out all the same, and only its answer is lost."""


class KubeApi(Played, kmock.RawHandler):
    """Use it by `async with running_api() as api`; `api.url` is where it listens."""

    def __init__(self, rules: list[Json] | None = None) -> None:
        super().__init__(strict=True)  # what goes wrong in here fails the test
        self.rules = rules
        self.kinds = dict(KINDS)
        self.objects: dict[Key, Json] = {}
        self.events: list[tuple[int, str, Key, Json]] = []
        self.version, self.forgotten = 1000, 0
        self.faults: list[Fault] = []
        self.used: set[tuple[bool, str, str, str]] = set()
        """(in a namespace, verb, group, resource or resource/subresource) that was answered."""
        self.closing = asyncio.Event()
        self.bell = asyncio.Condition()
        self.start_playing()

    # --- what tests do ------------------------------------------------------------------------------------------

    def fail(self, verb: str, plural: str, what: int | str, times: int = 1, *, done: bool = False) -> None:
        self.faults.append(Fault(verb, plural, what, times, done))

    def forget(self) -> None:
        """History is compacted: a watch from before is 410."""
        self.forgotten = self.version
        self.events.clear()

    def put(self, group: str, plural: str, obj: Json, namespace: str = "") -> Json:
        """As somebody else would, without HTTP: made or replaced."""
        key = Key(group, plural, namespace, obj["metadata"]["name"])
        return self.write(key, copy.deepcopy(obj), "MODIFIED" if key in self.objects else "ADDED")

    def of(self, plural: str) -> list[Json]:
        return [obj for key, obj in self.objects.items() if key.plural == plural]

    # --- state --------------------------------------------------------------------------------------------------

    def write(self, key: Key, obj: Json, kind: str) -> Json:
        self.version += 1
        version, name, _ = self.kinds[key.group, key.plural]
        obj["apiVersion"], obj["kind"] = f"{key.group}/{version}" if key.group else version, name
        before = self.objects.get(key, {}).get("metadata", {})
        meta = obj.setdefault("metadata", {})
        meta |= {"name": key.name, "resourceVersion": str(self.version)}
        meta["uid"] = before.get("uid") or f"00000000-0000-4000-8000-{self.version:012d}"
        meta["creationTimestamp"] = before.get("creationTimestamp") or "2026-01-01T00:00:00Z"
        if key.namespace:
            meta["namespace"] = key.namespace
        if kind == "DELETED":
            self.objects.pop(key, None)
        else:
            self.objects[key] = obj
        self.events.append((self.version, kind, key, copy.deepcopy(obj)))
        self.ring()
        return obj

    def ring(self) -> None:
        async def ring() -> None:
            async with self.bell:
                self.bell.notify_all()

        self.later(0, lambda: self.background(ring()))
        self.later(0, self.settle)

    # --- HTTP ---------------------------------------------------------------------------------------------------

    async def _handle(self, request: kmock.Request) -> aiohttp.web.StreamResponse:
        try:
            verb = _verb(request)
            resource = request.resource
            if resource is None or resource.plural is None:
                raise Refused(404, "the server could not find the requested resource")
            fault = next((f for f in self.faults if (f.verb, f.plural) == (verb, resource.plural) and f.times), None)
            if fault is not None:
                fault.times -= 1
                if not fault.done:
                    return await self._wrong(request, fault.what)
            answer = await self._answer(request, verb, resource.group or "", resource.plural)
            return answer if fault is None else await self._wrong(request, fault.what)
        except Refused as refused:
            return _json(refused.status(), refused.code, refused.retry_after)

    async def _wrong(self, request: kmock.Request, what: int | str) -> aiohttp.web.StreamResponse:
        if isinstance(what, int):
            raise Refused(what, f"played {what}", retry_after=1 if what == 429 else None)
        if what == "silence":
            await self.closing.wait()
        raw = request._raw_request
        if raw is not None and raw.transport is not None:
            raw.transport.abort()
        return aiohttp.web.Response()

    async def _answer(self, request: kmock.Request, verb: str, group: str, plural: str) -> aiohttp.web.StreamResponse:
        if (group, plural) not in self.kinds:
            return aiohttp.web.Response(status=404, text="404 page not found\n")
        self._allow(verb, group, "/".join(filter(None, [plural, request.subresource])), request)
        resource = "/".join(filter(None, [plural, request.subresource]))
        self.used.add((request.namespace is not None, verb, group, resource))
        key = Key(group, plural, request.namespace or "", request.name or "")
        params, body = request.params, request.data
        if verb in ("list", "watch"):
            chosen = _selected(params)
            if verb == "watch":
                return await self._watch(request, key, chosen)
            return _json(self._list(key, chosen, params))
        if verb == "create" and request.subresource == "eviction":
            return _json(self.evict(key, body), 201)
        if verb == "create":
            return _json(self._create(key, body), 201)
        if key not in self.objects:
            raise Refused(404, f'{plural} "{key.name}" not found')
        obj = self.objects[key]
        if verb == "get":
            return _json(obj)
        if verb == "delete":
            wanted = ((body or {}).get("preconditions") or {}).get("resourceVersion")
            if wanted and wanted != obj["metadata"]["resourceVersion"]:
                raise Refused(409, f"Precondition failed: ResourceVersion in precondition: {wanted}")
            return _json(self.delete(key, (body or {}).get("gracePeriodSeconds")))
        if request.subresource == "scale":
            obj = copy.deepcopy(obj)
            obj["spec"]["replicas"] = body["spec"]["replicas"]
            written = self.write(key, obj, "MODIFIED")
            scale = {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {"name": key.name}}
            return _json(scale | {"spec": {"replicas": written["spec"]["replicas"]}})
        changed = body if verb == "update" else _merged(obj, body)
        version = (changed.get("metadata") or {}).get("resourceVersion")
        if version and version != obj["metadata"]["resourceVersion"]:
            message = f'Operation cannot be fulfilled on {plural} "{key.name}": the object has been modified; '
            raise Refused(409, message + "please apply your changes to the latest version and try again")
        _check(changed)
        return _json(self.write(key, copy.deepcopy(changed), "MODIFIED"))

    def _allow(self, verb: str, group: str, resource: str, request: kmock.Request) -> None:
        def allows(rule: Json) -> bool:
            return group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]

        # A rule of the Role holds in its namespace, one of the ClusterRole everywhere.
        rules = [rule for rule in self.rules or [] if rule.get("namespace") in (None, request.namespace)]
        if self.rules is not None and not any(map(allows, rules)):
            message = f'{resource} is forbidden: User "planner" cannot {verb} resource "{resource}" in API group '
            raise Refused(403, message + f'"{group}" in the namespace "{request.namespace or ""}"')

    def _create(self, key: Key, body: Json) -> Json:
        key = key._replace(name=(body.get("metadata") or {}).get("name", ""))
        _check(body)
        if key in self.objects:
            raise Refused(409, f'{key.plural} "{key.name}" already exists', reason="AlreadyExists")
        return self.write(key, copy.deepcopy(body), "ADDED")

    def _list(self, key: Key, chosen: Callable[[Json], bool], params: Any) -> Json:
        found = [obj for each, obj in sorted(self.objects.items()) if _within(each, key) and chosen(obj)]
        version, start = self.version, 0
        if token := params.get("continue"):
            version, start = map(int, token.split(":"))
            if version < self.forgotten:
                raise Refused(410, "The provided continue parameter is too old")
        most = int(params.get("limit") or len(found) or 1)
        meta: Json = {"resourceVersion": str(version)}
        if start + most < len(found):
            meta["continue"] = f"{version}:{start + most}"
        group_version, kind, _ = self.kinds[key.group, key.plural]
        items = found[start : start + most]
        return {"kind": f"{kind}List", "apiVersion": group_version, "metadata": meta, "items": items}

    async def _watch(
        self, request: kmock.Request, key: Key, chosen: Callable[[Json], bool]
    ) -> aiohttp.web.StreamResponse:
        response = aiohttp.web.StreamResponse(headers={"Content-Type": "application/json"})
        assert request._raw_request is not None
        await response.prepare(request._raw_request)
        at = int(request.params.get("resourceVersion") or self.version)
        deadline = asyncio.get_running_loop().time() + float(request.params.get("timeoutSeconds") or 300)
        with contextlib.suppress(ConnectionError):
            async for event in self._changes(at, key, chosen, deadline):
                await response.write(json.dumps(event).encode() + b"\n")
            if request.params.get("allowWatchBookmarks") == "true":
                mark = {"kind": self.kinds[key.group, key.plural][1], "metadata": {"resourceVersion": str(at)}}
                await response.write(json.dumps({"type": "BOOKMARK", "object": mark}).encode() + b"\n")
            await response.write_eof()
        return response

    async def _changes(
        self, at: int, key: Key, chosen: Callable[[Json], bool], deadline: float
    ) -> AsyncIterator[Json]:
        loop = asyncio.get_running_loop()
        while not self.closing.is_set() and loop.time() < deadline:
            for fault in self.faults:
                if (fault.verb, fault.plural) == ("event", key.plural) and fault.times:
                    fault.times -= 1
                    assert isinstance(fault.what, int)
                    yield {"type": "ERROR", "object": Refused(fault.what, f"played {fault.what}").status()}
                    return
            if at < self.forgotten:
                gone = Refused(410, f"too old resource version: {at} ({self.forgotten})")
                yield {"type": "ERROR", "object": gone.status()}
                return
            for version, kind, each, obj in list(self.events):
                if version > at and _within(each, key) and chosen(obj):
                    yield {"type": kind, "object": obj}
                at = max(at, version)
            async with self.bell:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(0.2, max(0.0, deadline - loop.time()))):
                        await self.bell.wait()


def _verb(request: kmock.Request) -> str:
    if request.method.value == "GET":
        watches = request.params.get("watch") == "true"
        return "watch" if watches else "get" if request.name else "list"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[request.method.value]


def _within(each: Key, key: Key) -> bool:
    return each[:2] == key[:2] and key.namespace in ("", each.namespace)


def _selected(params: Any) -> Callable[[Json], bool]:
    """labelSelector of `a=b`, `a!=b`, `a`, `!a`; fieldSelector of paths, `=` and `!=`."""

    def terms(text: str) -> Iterator[tuple[str, str, str]]:
        for term in filter(None, (text or "").split(",")):
            name, sign, value = re.fullmatch(r"(!?[^=!]+)(!=|==|=|)(.*)", term).groups()  # type: ignore[union-attr]
            yield name, sign, value

    def labelled(obj: Json) -> bool:
        labels = obj["metadata"].get("labels") or {}
        for name, sign, value in terms(params.get("labelSelector", "")):
            if not sign:
                if (name.lstrip("!") in labels) == name.startswith("!"):
                    return False
            elif (labels.get(name) == value) == (sign == "!="):
                return False
        return True

    def fielded(obj: Json) -> bool:
        for path, sign, value in terms(params.get("fieldSelector", "")):
            at: Any = obj
            for step in path.split("."):
                at = (at or {}).get(step)
            if ((at or "") == value) == (sign == "!="):
                return False
        return True

    return lambda obj: labelled(obj) and fielded(obj)


def _check(obj: Json) -> None:
    meta = obj.get("metadata") or {}
    if not NAME.fullmatch(meta.get("name") or ""):
        raise Refused(422, f"metadata.name: Invalid value: {meta.get('name')!r}: a lowercase RFC 1123 subdomain")
    for value in (meta.get("labels") or {}).values():
        if not isinstance(value, str) or not LABEL.fullmatch(value):
            raise Refused(422, f"metadata.labels: Invalid value: {value!r}")
    if len(json.dumps(obj)) > MOST_BYTES:
        raise Refused(413, "etcdserver: request is too large")


def _merged(obj: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(obj) if isinstance(obj, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merged(merged.get(name), value)
    return merged


def _json(obj: Json, status: int = 200, retry_after: int | None = None) -> aiohttp.web.Response:
    headers = {"Content-Type": "application/json"}
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    return aiohttp.web.Response(body=json.dumps(obj).encode(), status=status, headers=headers)


@contextlib.asynccontextmanager
async def running_api(rules: list[Json] | None = None) -> AsyncIterator[KubeApi]:
    async with KubeApi(rules) as api, kmock.Server(api):
        try:
            yield api
        finally:
            api.closing.set()
            await api.stop_playing()


def kubeconfig(api: KubeApi, folder: Path, namespace: str = "planner") -> Path:
    """A file by which clients find it."""
    path = folder / "kubeconfig.yml"
    document = {
        "current-context": "played",
        "clusters": [{"name": "played", "cluster": {"server": str(api.url)}}],
        "users": [{"name": "planner", "user": {"token": "played"}}],
        "contexts": [{"name": "played", "context": {"cluster": "played", "user": "planner", "namespace": namespace}}],
    }
    path.write_text(json.dumps(document))
    return path
