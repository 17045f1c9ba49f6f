"""The API server: the calls that we need, with its errors as ours.

    403, 401                  RefusedError, which names the right that is missing
    404                       None, or False where something was to be deleted
    409                       ConflictError
    410                       GoneError: begin again by listing
    400, 413, 422             RejectedError: what we sent is not accepted; to be told to whoever asked
    429                       BusyError, with the server's Retry-After
    500 and above, no answer  UnreachableError: of a write nobody knows whether it was carried out

Nothing is tried again here: whether that is safe is known to the caller.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import yaml
from lightkube import ApiError, AsyncClient, KubeConfig, operators
from lightkube.core.exceptions import ConfigError
from lightkube.core.resource import ApiInfo, GlobalResource, NamespacedResourceG, ResourceDef
from lightkube.generic_resource import Generic, create_api_info
from lightkube.resources.apps_v1 import Deployment
from lightkube.resources.core_v1 import ConfigMap, Node, Pod
from lightkube.resources.resource_v1 import ResourceClaim, ResourceSlice
from lightkube.types import PatchType

from lavalite.base.errors import (
    BusyError,
    ConflictError,
    InputError,
    LavaLiteError,
    RefusedError,
    UnreachableError,
)

Json = dict[str, Any]
PAGE = 500
MOST_RETRY_AFTER_SECONDS = 60
RIGHTS = "docs/examples/kubernetes/rbac.yaml has the rights that are needed."


class GoneError(ConflictError):
    """The server has forgotten the version that we go on from."""

    default_code = "gone"


class NoSuchKindError(LavaLiteError):
    """The cluster has no objects of that kind."""

    default_code = "no_such_kind"


class RejectedError(LavaLiteError):
    """The API server does not accept an object of ours."""

    default_code = "rejected"


@dataclass(slots=True, frozen=True)
class Kind:
    """A sort of objects; `resource` as it is called in a Role."""

    resource: str
    _of: Any


def _kind(info: ApiInfo, *, everywhere: bool = False) -> Kind:
    """Read as plain mappings: what a release of Kubernetes adds or leaves out is no fault."""
    bases = (GlobalResource if everywhere else NamespacedResourceG, Generic)
    return Kind(info.plural, type(info.resource.kind, bases, {"_api_info": info}))


NODES = _kind(Node._api_info, everywhere=True)
PODS = _kind(Pod._api_info)
CONFIG_MAPS = _kind(ConfigMap._api_info)
DEPLOYMENTS = _kind(Deployment._api_info)
RESOURCE_SLICES = _kind(ResourceSlice._api_info, everywhere=True)
RESOURCE_CLAIMS = _kind(ResourceClaim._api_info)
GROUPS = _kind(create_api_info("lavalite.io", "v1", "ComputeGroup", "computegroups"))
_SCALES = _kind(replace(Deployment.Scale._api_info, resource=ResourceDef("autoscaling", "v1", "Scale")))
_EVICTIONS = _kind(Pod.Eviction._api_info)


class Connection:
    """To one API server, and one namespace in which our objects are. Raises what the module's docstring lists."""

    def __init__(self, client: AsyncClient, namespace: str = "") -> None:
        self._client: Any = client  # its overloads want the kind in the source, and ours is a value
        self.namespace = namespace or client.namespace or "default"

    @classmethod
    def open(
        cls, namespace: str = "", kubeconfig: Path | None = None, *, timeout_seconds: float = 10.0
    ) -> Connection:
        """By this kubeconfig; else as a pod of the cluster, by KUBECONFIG, by ~/.kube/config. Raises InputError."""
        try:
            config = KubeConfig.from_file(kubeconfig) if kubeconfig is not None else KubeConfig.from_env()
            client = AsyncClient(config, timeout=httpx2.Timeout(timeout_seconds))
        except (ConfigError, OSError, LookupError, ValueError, TypeError, AssertionError, yaml.YAMLError) as error:
            hint = "Give a kubeconfig, set KUBECONFIG, or run in a pod of the cluster."
            raise InputError(f"no Kubernetes cluster is configured: {error}", field="where", hint=hint) from error
        return cls(client, namespace)

    async def close(self) -> None:
        await self._client.close()

    async def get(self, kind: Kind, name: str) -> Json | None:
        with _told(f"get {kind.resource} {name}", "get", kind):
            try:
                return _plain(await self._client.get(kind._of, name, **self._where(kind)))
            except httpx2.HTTPStatusError as error:
                if _code(error) == 404:
                    return None
                raise

    async def list_all(
        self,
        kind: Kind,
        *,
        labels: Mapping[str, str | None] | None = None,
        without: Mapping[str, Sequence[str]] | None = None,
        everywhere: bool = False,
    ) -> list[Json] | None:
        """None where the cluster has no such kind. `labels`: by value, None where any will do; `without`: fields that
        have none of these values."""
        try:
            return (await self.list_at(kind, labels=labels, without=without, everywhere=everywhere))[0]
        except NoSuchKindError:
            return None

    async def list_at(
        self,
        kind: Kind,
        *,
        labels: Mapping[str, str | None] | None = None,
        without: Mapping[str, Sequence[str]] | None = None,
        everywhere: bool = False,
    ) -> tuple[list[Json], str]:
        """And the version as of which that is, to watch from. Raises NoSuchKindError."""
        fields = {field: operators.not_in(values) for field, values in (without or {}).items()} or None
        where = {"namespace": "*"} if everywhere else self._where(kind)
        for attempt in (1, 2, 3):
            with _told(f"list {kind.resource}", "list", kind):
                try:
                    pages = self._client.list(kind._of, chunk_size=PAGE, labels=labels, fields=fields, **where)
                    found = [_plain(each) async for each in pages]
                    return found, pages.resourceVersion
                except httpx2.HTTPStatusError as error:
                    if _code(error) == 404:
                        raise NoSuchKindError(f"the cluster has no {kind.resource}") from error
                    # The pages that follow are of a version that is forgotten by now.
                    if _code(error) != 410 or attempt == 3:
                        raise
        raise AssertionError("the third attempt returns or raises")

    async def create(self, kind: Kind, obj: Json) -> Json:
        """ConflictError where there is one of that name."""
        with _told(f"create {kind.resource} {obj['metadata']['name']}", "create", kind):
            return _plain(await self._client.create(kind._of(obj), **self._where(kind)))

    async def replace(self, kind: Kind, obj: Json) -> Json | None:
        """With `metadata.resourceVersion` only where it still has that version, else ConflictError."""
        with _told(f"update {kind.resource} {obj['metadata']['name']}", "update", kind):
            try:
                return _plain(await self._client.replace(kind._of(obj), **self._where(kind)))
            except httpx2.HTTPStatusError as error:
                if _code(error) == 404:
                    return None
                raise

    async def delete(self, kind: Kind, name: str, *, version: str = "") -> bool:
        """What it owns goes too; pods end within their grace period. With `version` only where it still has that,
        else ConflictError."""
        options: Json = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if version:
            options["preconditions"] = {"resourceVersion": version}
        with _told(f"delete {kind.resource} {name}", "delete", kind):
            try:
                # AsyncClient.delete can say no preconditions.
                generic = self._client._client
                request = generic.prepare_request("delete", kind._of, name=name, **self._where(kind))
                request.data = options
                answer = await generic.send(generic.build_adapter_request(request))
                generic.handle_response("delete", answer, request)
            except httpx2.HTTPStatusError as error:
                if _code(error) == 404:
                    return False
                raise
        return True

    async def scale(self, name: str, replicas: int) -> bool:
        """Of a deployment."""
        with _told(f"patch deployments/scale {name}", "patch", DEPLOYMENTS):
            try:
                scale = {"spec": {"replicas": replicas}}
                where = {"namespace": self.namespace, "patch_type": PatchType.MERGE}
                await self._client.patch(_SCALES._of, name, scale, **where)
            except httpx2.HTTPStatusError as error:
                if _code(error) == 404:
                    return False
                raise
        return True

    async def evict(self, name: str) -> bool:
        """Ask a pod to end, where budgets of disruption allow it; else BusyError: ask again. False: it is gone."""
        with _told(f"create pods/eviction {name}", "create", PODS):
            try:
                eviction = _EVICTIONS._of({"metadata": {"name": name, "namespace": self.namespace}})
                await self._client.create(eviction, name=name, namespace=self.namespace)
            except httpx2.HTTPStatusError as error:
                if _code(error) == 404:
                    return False
                raise
        return True

    async def watch(
        self,
        kind: Kind,
        *,
        version: str,
        name: str = "",
        labels: Mapping[str, str | None] | None = None,
        seconds: int = 240,
    ) -> AsyncIterator[tuple[str, Json]]:
        """(ADDED, MODIFIED or DELETED, object) from after `version` on, without end: taken up again by itself when
        the server ends it, as it does after so many seconds."""
        with _told(f"watch {kind.resource}", "watch", kind):
            fields = {"metadata.name": name} if name else None
            where: Json = {"server_timeout": seconds, "resource_version": version, **self._where(kind)}
            async for event, obj in self._client.watch(kind._of, labels=labels, fields=fields, **where):
                if event != "BOOKMARK":
                    yield event, _plain(obj)

    def _where(self, kind: Kind) -> Json:
        return {} if kind in (NODES, RESOURCE_SLICES) else {"namespace": self.namespace}


def _plain(obj: Any) -> Json:
    return dict(obj)


def _code(error: httpx2.HTTPStatusError) -> int:
    if isinstance(error, ApiError) and error.status.code:
        return int(error.status.code)
    return error.response.status_code


@contextmanager
def _told(what: str, verb: str, kind: Kind) -> Iterator[None]:
    """Errors of the client as ours."""
    try:
        yield
    except httpx2.HTTPStatusError as error:
        raise _typed(what, verb, kind, error) from error
    except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
        why = str(error) or type(error).__name__
        raise UnreachableError(f"the API server does not answer: {what}: {why}") from error
    except ConfigError as error:
        raise RefusedError(f"we cannot say who we are: {error}") from error
    except ValueError as error:  # no JSON, or not of that kind: something else answers there
        raise UnreachableError(f"what answers is no API server: {what}: {str(error)[:120]}") from error


def _typed(what: str, verb: str, kind: Kind, error: httpx2.HTTPStatusError) -> LavaLiteError:
    code, said = _code(error), (str(error).splitlines() or [""])[0][:300]
    if code == 401:
        return RefusedError(f"the API server does not know us: {what}", hint="Renew the token of the kubeconfig.")
    if code == 403:
        message = f"the API server does not let us {verb} {kind.resource}: {said}"
        return RefusedError(message, code="forbidden", hint=RIGHTS)
    if code == 409:
        return ConflictError(f"{what}: {said}")
    if code == 410:
        return GoneError(f"{what}: {said}")
    if code == 429:
        return BusyError(f"the API server asks us to wait: {what}", retry_after_seconds=_retry_after(error))
    if code >= 500:
        return UnreachableError(f"the API server failed: {what}: {code} {said}")
    return RejectedError(f"the API server does not accept it: {what}: {said}")


def _retry_after(error: httpx2.HTTPStatusError) -> int:
    said: Any = None
    if isinstance(error, ApiError) and error.status.details is not None:
        said = error.status.details.retryAfterSeconds
    if not said and error.response is not None:
        said = error.response.headers.get("Retry-After")
    try:
        return max(1, min(int(said or 1), MOST_RETRY_AFTER_SECONDS))
    except ValueError:  # a date, which no API server sends
        return 1
