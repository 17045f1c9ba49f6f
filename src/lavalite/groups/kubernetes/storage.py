"""Records of the ledger as objects of a cluster, one each; and the number of the change that wrote it last.

Groups are of the kind ComputeGroup, where the cluster has it; all else, and where it has not, ConfigMaps. Writes are
idempotent, and one that comes late does no harm: an object that a later change has written is left as it is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lavalite.base.errors import ConflictError, UnreachableError
from lavalite.groups.records import GROUPS
from lavalite.providers.kubernetes import connection as kube
from lavalite.providers.kubernetes.connection import CONFIG_MAPS, Connection, Kind

Json = dict[str, Any]
Where = Literal["computegroups", "configmaps"]
LEDGER = "lavalite.io/ledger"
"""A label of all objects of the ledger: `record`, `head` or `part`."""
_BASE64 = "base64:"
_PLAIN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,180}[a-z0-9])?")
ATTEMPTS = 30


@dataclass(slots=True, frozen=True)
class Found:
    """A record as it is in the cluster. `version` is its object's."""

    key: str
    value: bytes
    change: int
    version: str


class Storage:
    """All methods raise what lavalite.providers.kubernetes.connection lists."""

    def __init__(self, connection: Connection, where: Where) -> None:
        self._connection = connection
        self.where = where
        self._versions: dict[str, str] = {}
        """Of objects, as we know them: so that they can be written without being read before."""

    async def list(self) -> list[Found]:
        """All that there is, as of no single moment."""
        kinds = {CONFIG_MAPS, self._kind(GROUPS)}
        found = []
        for kind in sorted(kinds, key=lambda kind: kind.resource):
            listed = await self._connection.list_all(kind, labels={LEDGER: "record"})
            if listed is None:
                raise UnreachableError(
                    f"the ledger's groups are {kind.resource}, which the cluster does not have any more",
                    hint="Apply docs/examples/kubernetes/crd.yaml again.",
                )
            found += [_found(obj) for obj in listed]
        self._versions = {each.key: each.version for each in found}
        return found

    async def write(self, key: str, value: bytes, change: int, *, new: bool) -> None:
        """`new`: it is not known to be there, so that it is tried to be made first."""
        kind, obj = self._kind(key), _object(key, value, change, self._kind(key))
        version = self._versions.pop(key, "")
        for _ in range(ATTEMPTS):
            try:
                if version:
                    obj["metadata"]["resourceVersion"] = version
                    written = await self._connection.replace(kind, obj)
                elif new:
                    written = await self._connection.create(kind, obj)
                else:
                    written = None
                if written is not None:
                    self._versions[key] = written["metadata"]["resourceVersion"]
                    return
            except ConflictError:
                pass
            there = await self._connection.get(kind, object_name(key))
            if there is not None and _found(there).change >= change:
                return
            version = there["metadata"]["resourceVersion"] if there is not None else ""
            new = there is None
            obj["metadata"].pop("resourceVersion", None)
        raise ConflictError(f"{key} is written by others all the time", hint="Try again.")

    async def remove(self, key: str, change: int) -> None:
        """But for what a later change has written."""
        kind = self._kind(key)
        version = self._versions.pop(key, "")
        for _ in range(ATTEMPTS):
            if version:
                try:
                    await self._connection.delete(kind, object_name(key), version=version)
                    return
                except ConflictError:
                    pass
            there = await self._connection.get(kind, object_name(key))
            if there is None or _found(there).change > change:
                return
            version = there["metadata"]["resourceVersion"]
        raise ConflictError(f"{key} is written by others all the time", hint="Try again.")

    async def is_written(self, key: str, change: int) -> bool:
        there = await self._connection.get(self._kind(key), object_name(key))
        return there is not None and _found(there).change >= change

    def forget(self, keys: Iterable[str]) -> None:
        """Somebody else has written them."""
        for key in keys:
            self._versions.pop(key, None)

    def _kind(self, key: str) -> Kind:
        return kube.GROUPS if key.startswith(GROUPS) and self.where == "computegroups" else CONFIG_MAPS


def object_name(key: str) -> str:
    """`groups/x` is lavalite-groups-x. What no object can be called is told apart by a sum."""
    kind, _, name = key.partition("/")
    if _PLAIN.fullmatch(f"{kind}-{name}") and "-" not in kind:
        return f"lavalite-{kind}-{name}"
    rough = re.sub(r"[^a-z0-9.]+", "-", key.lower())[:100].strip("-.")
    return f"lavalite-x-{rough}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def text_of(value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = _BASE64
    return _BASE64 + base64.b64encode(value).decode() if text.startswith(_BASE64) else text


def value_of(text: str) -> bytes:
    return base64.b64decode(text.removeprefix(_BASE64)) if text.startswith(_BASE64) else text.encode()


def _object(key: str, value: bytes, change: int, kind: Kind) -> Json:
    meta = {"name": object_name(key), "labels": {LEDGER: "record"}}
    fields = {"key": key, "change": str(change), "value": text_of(value)}
    if kind is CONFIG_MAPS:
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": fields}
    spec = {**fields, "change": change, **_shown(value)}
    return {"apiVersion": "lavalite.io/v1", "kind": "ComputeGroup", "metadata": meta, "spec": spec}


def _shown(value: bytes) -> Mapping[str, str]:
    """What kubectl shows of a group; nothing reads it back."""
    try:
        record = json.loads(value)
        return {name: str(record[name]) for name in ("node", "state", "component") if record.get(name)}
    except (ValueError, AttributeError):
        return {}


def _found(obj: Json) -> Found:
    fields = obj.get("spec") or obj.get("data") or {}
    return Found(fields["key"], value_of(fields["value"]), int(fields["change"]), obj["metadata"]["resourceVersion"])
