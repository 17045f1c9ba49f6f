"""What people ask of the definition: apply a whole document, put or delete an entry."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from lavalite.api import models
from lavalite.base.errors import ConflictError, InputError, UnknownNameError
from lavalite.control.events import DefinitionApplied, HostApplied, HostRemoved, HostReserved, Specs
from lavalite.mbatchd.document import sections, typed
from lavalite.mbatchd.reader import Reader
from lavalite.mbatchd.service import Service
from lavalite.model.pools import PoolsDocument, load_pools, pools_from
from lavalite.model.specs import NodeCapacity

MAX_DOCUMENT_BYTES = 960 * 1024
"""As stored. A store takes a mebibyte at once, all told; what it refuses would end the scheduler."""
NAMED_SECTIONS = ("pools", "logical_hosts", "queues")
SECTION_OF = {"pools": "pools", "queues": "queues", "hosts": "logical_hosts"}
"""Section of the document by what the API's path says."""


class DefinitionDesk:
    """Applies documents and entries. Everything is checked whole before anything changes.

    One at a time, and what takes long is done in a thread: a large document is read and planned for seconds, and
    the leadership must be kept meanwhile.
    """

    def __init__(self, service: Service, reader: Reader, cluster: str) -> None:
        self._service, self._reader, self._cluster = service, reader, cluster
        self._turn = asyncio.Lock()

    def current(self) -> models.Definition:
        return models.Definition.model_validate(self._stored())

    async def apply(
        self, ask: models.DefinitionPut, *, dry_run: bool, if_version: int | None = None
    ) -> models.DefinitionResult:
        """The whole document. Raises InputError with all faults, by file and line."""
        async with self._turn:
            return await self._apply(ask, dry_run=dry_run, if_version=if_version)

    async def _apply(
        self, ask: models.DefinitionPut, *, dry_run: bool, if_version: int | None
    ) -> models.DefinitionResult:
        document, asked_for = await asyncio.to_thread(_read, ask.text, ask.file, self._nodes())
        self._demand_version(if_version)
        if document.cluster != self._cluster:
            raise InputError(
                f"this document is for cluster {document.cluster}, and here is {self._cluster}",
                code="wrong_cluster",
                field="cluster",
                hint="Apply it where it belongs, or mend its cluster:.",
            )
        before = self._stored()
        after = {
            **before,
            "links": asked_for["links"] or ([] if ask.purge else before["links"]),
            "owned": dict(before["owned"]),
        }
        for section in NAMED_SECTIONS:
            owned, asked = set(before["owned"].get(section, ())), asked_for[section]
            kept = {n: e for n, e in before[section].items() if not (ask.purge and n in owned and n not in asked)}
            after[section] = {**kept, **asked}
            after["owned"][section] = sorted((owned & kept.keys()) | asked.keys())
        return await self._change(before, after, purge=ask.purge, dry_run=dry_run)

    async def put_entry(
        self, path: str, name: str, ask: models.EntryPut, *, dry_run: bool
    ) -> models.DefinitionResult:
        """Add one entry or change it. Raises InputError, ConflictError when the definition was changed meanwhile."""
        async with self._turn:
            before, section = self._stored(), SECTION_OF[path]
            self._demand_version(ask.if_version)
            after = {**before, section: {**before[section], name: ask.spec}}
            if path != "hosts" and ask.reserve_seconds is not None:
                raise InputError("only logical hosts are reserved", field="reserve_seconds", hint="Leave it out.")
            entry = name if path == "hosts" else ""
            return await self._change(
                before, after, purge=False, dry_run=dry_run, reserve=entry, seconds=ask.reserve_seconds
            )

    async def delete_entry(
        self, path: str, name: str, *, dry_run: bool, if_version: int | None = None
    ) -> models.DefinitionResult:
        """Remove one entry; a host goes when nothing on it is in use."""
        async with self._turn:
            before, section = self._stored(), SECTION_OF[path]
            self._demand_version(if_version)
            if name not in before[section]:
                raise UnknownNameError(f"there is no {name} under {section}", field=section)
            after = {**before, section: {n: e for n, e in before[section].items() if n != name}}
            owned = before["owned"].items()
            after["owned"] = {s: [n for n in names if (s, n) != (section, name)] for s, names in owned}
            return await self._change(before, after, purge=True, dry_run=dry_run)

    async def _change(
        self,
        before: dict[str, Any],
        after: dict[str, Any],
        *,
        purge: bool,
        dry_run: bool,
        reserve: str = "",
        seconds: int | None = None,
    ) -> models.DefinitionResult:
        """`reserve` is an entry of logical hosts: what they would take is held for so many seconds; without, what was
        held is composed.
        """
        specs = await asyncio.to_thread(_specs, typed(after), self._nodes())
        leaving = self._leaving(before, specs, purge=purge)
        changed = typed(before) != typed(after) or not set(leaving) <= set(before["leaving"])
        noted = changed or before["owned"] != after["owned"]
        after = {**after, "leaving": leaving, "version": before["version"] + noted}
        stored = _storable(after)
        result = models.DefinitionResult(
            changed=changed,
            version=after["version"],
            before=sections(before),
            after=sections(after),
            hosts=await self._reader.planned(specs.hosts.values(), specs.pools.values(), specs.links),
        )
        until = 0.0 if seconds is None else self._service.time.now() + seconds
        reserved = {spec.name: until for spec in specs.hosts.values() if spec.entry == reserve}
        if not noted:
            if not dry_run:
                self._again(specs, reserved)
            await self._service.settled()  # what it equals may have been applied a moment ago
        elif not dry_run:
            await self._service.obey(DefinitionApplied(stored, specs, purge, reserved))
            result.hosts = [h for h in self._reader.hosts() if h.name in specs.hosts]
        return result

    def _again(self, specs: Specs, reserved: dict[str, float]) -> None:
        """Who applies what is applied already does not want to wait for the next try of hosts that failed."""
        hosts = self._service.state.hosts
        for name in specs.hosts:
            if until := reserved.get(name, 0.0):
                self._service.apply(HostReserved(name, until))
            elif name in hosts and (hosts[name].retry_at or (name in reserved and hosts[name].reserved_until)):
                self._service.apply(HostApplied(name))

    def _leaving(self, before: dict[str, Any], specs: Specs, *, purge: bool) -> list[str]:
        """Logical hosts that are there, and are not to be: those of earlier changes, and with `purge` of this one."""
        extra = self._service.state.hosts.keys() - specs.hosts.keys()
        return sorted(extra if purge else extra & set(before["leaving"]))

    def _demand_version(self, wanted: int | None) -> None:
        """Raises ConflictError where the definition was changed since whoever asks has read it."""
        stands = self._stored()["version"]
        if wanted is not None and wanted != stands:
            raise ConflictError(
                f"the definition is at version {stands}, not {wanted}",
                code="version_changed",
                hint="Read it again, then change it.",
            )

    def _stored(self) -> dict[str, Any]:
        return self._service.document

    def _nodes(self) -> list[NodeCapacity] | None:
        """What the document is held against; nothing is while no node is known."""
        return [n.capacity() for n in self._service.state.nodes.values()] or None


def go_on_removing(service: Service) -> None:
    """Let go the hosts that were to go under an earlier leader. Their state may not have been written by then."""
    for name in service.document["leaving"]:
        service.apply(HostRemoved(name))


def _read(text: str, file: str, nodes: list[NodeCapacity] | None) -> tuple[PoolsDocument, dict[str, Any]]:
    document = load_pools(text, file, nodes)
    return document, document.canonical()


def _specs(document: dict[str, Any], nodes: list[NodeCapacity] | None) -> Specs:
    return Specs.of(pools_from(document, nodes))


def _storable(document: dict[str, Any]) -> bytes:
    """Raises InputError for what could not be stored, or not be shown again."""
    try:
        json.dumps(document, ensure_ascii=False).encode()
        stored = json.dumps(document, sort_keys=True, allow_nan=False).encode()
    except ValueError:
        raise InputError("the definition holds what is no text, or a number that is none", field="spec") from None
    if len(stored) > MAX_DOCUMENT_BYTES:
        message = f"the definition would have {len(stored)} bytes, at most {MAX_DOCUMENT_BYTES} are stored"
        raise InputError(message, code="too_long", hint="Use labels and ranges of names instead of single entries.")
    return stored
