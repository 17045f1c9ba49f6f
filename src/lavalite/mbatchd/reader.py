"""The state as the API answers it: control's views, with what only the shell knows added."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, TypeVar

from lavalite import __version__
from lavalite.api import models
from lavalite.base.errors import UnknownNameError
from lavalite.control import views
from lavalite.control.admission import find_job
from lavalite.control.decisions import record_of
from lavalite.control.estimates import Estimates
from lavalite.control.explain import explain
from lavalite.control.hosts.composer import planner
from lavalite.control.hosts.growth import grown_spec
from lavalite.control.node_state import NodeState
from lavalite.control.tasks import JobState
from lavalite.ledger.committer import Committer
from lavalite.mbatchd.hosts_here import HostNews
from lavalite.mbatchd.leadership import Leadership
from lavalite.mbatchd.pressure import Pressure
from lavalite.mbatchd.service import Service
from lavalite.mbatchd.sessions import AgentSessions
from lavalite.model.decision import DecisionRecord
from lavalite.model.host import LogicalHost
from lavalite.model.reservation import Reservation
from lavalite.model.specs import HostSpec, LinkSpec, PoolSpec
from lavalite.placement.reasons import Refusal
from lavalite.store.base import Store, StoreUnavailable

Named = TypeVar("Named", models.Pool, models.Queue)

NEEDED_OF_HOST = frozenset({"name", "state", "anchor", "version"})
"""To tell whether it can be entered."""
ANY_COMPONENT = "*"
MAX_LOOKED_AT = 20_000
"""Jobs, or tasks, that one call looks at for a page of those that match; the cursor goes on from there."""


class Reader:
    """Answers from memory. Never writes; waits only for the store's status, and for long plans."""

    def __init__(
        self,
        service: Service,
        sessions: AgentSessions,
        news: HostNews,
        leadership: Leadership,
        committer: Committer,
        store: Store,
        pressure: Pressure,
        *,
        cluster: str,
        node: str,
        api_url: str,
    ) -> None:
        self._service, self._state, self._sessions = service, service.state, sessions
        self._news, self._leadership, self._committer, self._store = news, leadership, committer, store
        self._pressure = pressure
        self._cluster, self._node, self._api_url = cluster, node, api_url
        self._started_at = service.time.now()

    def health(self) -> models.Health:
        return models.Health(
            lim="master", mbatchd="running", node=self._node, version=__version__, tasks=len(self._state.runs)
        )

    async def status(self) -> models.Status:
        now = self._service.time.now()
        counts = views.counts(self._state, now)
        return models.Status(
            cluster=self._cluster,
            node=self._node,
            lim="master",
            mbatchd="running",
            epoch=self._service.epoch,
            version=__version__,
            started_at=self._started_at,
            now=now,
            store=await self._store_status(),
            nodes=counts["nodes"],
            jobs=counts["jobs"],
            tasks=counts["tasks"],
            quarantined=len(self._state.quarantine),
            commitments=len(self._state.runs) + sum(bool(h.parts) for h in self._state.hosts.values()),
            headroom=self._pressure.headroom(),
            refuses=self._pressure.refuses(),
            loop_lag_ms=round(1000 * self._service.loop_lag_seconds, 3),
            api_url=self._api_url,
        )

    async def _store_status(self) -> dict[str, Any]:
        committed = asdict(self._committer.counters)
        try:
            found = await self._store.status()
        except StoreUnavailable as error:
            return {"answers": False, "reason": error.fault.message, "commits": committed}
        return {"answers": True, **asdict(found), "commits": committed}

    # --- nodes, pools, queues, hosts ----------------------------------------------------------------------

    def nodes(self) -> Iterator[models.Node]:
        return (self._node_of(view) for view in views.nodes(self._state, self._service.time.now()))

    def node(self, name: str) -> models.Node:
        found = self._state.nodes.get(name)
        if found is None:
            raise _unknown("node", name)
        return self.shown(found)

    def shown(self, node: NodeState) -> models.Node:
        """One node as people see it, or as it would be."""
        return self._node_of(views.node(self._state, node, self._service.time.now()))

    def _node_of(self, view: dict[str, Any]) -> models.Node:
        member = self._leadership.members.get(view["name"])
        if member is not None:
            view |= {"round_trip_ms": member.round_trip_ms, "lost_beats": member.lost}
        view["software_version"] = self._sessions.versions.get(view["name"], "")
        return models.Node.model_validate(view)

    def resources(self, after: str = "") -> Iterator[models.NodeResources]:
        found = views.resources(self._state, self._service.time.now(), after)
        return map(models.NodeResources.model_validate, found)

    def pools(self) -> Iterator[models.Pool]:
        return (models.Pool.model_validate(self._with_spec("pools", v)) for v in views.pools(self._state))

    def pool(self, name: str) -> models.Pool:
        return _named(self.pools(), "pool", name)

    def queues(self, *, users: bool = False) -> Iterator[models.Queue]:
        found = views.queues(self._state, users=users)
        return (models.Queue.model_validate(self._with_spec("queues", v)) for v in found)

    def queue(self, name: str) -> models.Queue:
        return _named(self.queues(users=True), "queue", name)

    def hosts(self, after: str = "") -> Iterator[models.Host]:
        return map(models.Host.model_validate, self.host_views(after))

    def host_views(self, after: str = "", fields: frozenset[str] = frozenset()) -> Iterator[dict[str, Any]]:
        """Hosts after `after` by name, as plain dictionaries with these fields; with all where none is named."""
        seen = fields | NEEDED_OF_HOST if fields else fields
        for view in views.hosts(self._state, after, seen):
            told = self._told_of(view, with_spec=not fields or "spec" in fields)
            yield {name: told[name] for name in told if name in fields} if fields else told

    def host(self, name: str) -> models.Host:
        found = self._state.hosts.get(name)
        if found is None:
            raise _unknown("host", name)
        return self.host_as(found)

    def host_as(self, found: LogicalHost) -> models.Host:
        """One host as people see it, or as it would be."""
        return models.Host.model_validate(self._told_of(views.host(self._state, found)))

    def _told_of(self, view: dict[str, Any], *, with_spec: bool = True) -> dict[str, Any]:
        """With whether the host can be entered, and what was asked for."""
        if view["state"] == "composed" and not self._news.is_applied(view["anchor"], view["name"], view["version"]):
            view = {
                **view,
                "state": "composing",
                "reason": f"{view['anchor']} has not said yet that it can be entered",
            }
        spec = self._state.specs.hosts.get(view["name"]) if with_spec else None
        return {**view, "spec": asdict(spec) if spec else {}}

    def _with_spec(self, section: str, view: dict[str, Any]) -> dict[str, Any]:
        document = self._service.document
        return {**view, "spec": document[section].get(view["name"]) or {}, "version": document["version"]}

    async def planned(
        self, specs: Iterable[HostSpec], pools: Iterable[PoolSpec], links: Sequence[LinkSpec]
    ) -> list[models.Host]:
        """What these hosts are, or would be were they, these pools and these links asked for now."""
        wanted = list(specs)
        plan_all = planner(self._state, self._service.time.now(), list(pools), links)
        wishes = [grown_spec(spec, self._state.hosts.get(spec.name)) for spec in wanted]
        found = await asyncio.to_thread(plan_all, wishes) if wanted else {}
        hosts = []
        for spec in wanted:
            plan = found[spec.name]
            if isinstance(plan, Refusal):
                host = models.Host(name=spec.name, state="planned", reason=plan.sentence(), spec=asdict(spec))
            else:
                # As it is asked for: what is done about it only follows from that.
                asked = {"spec": asdict(spec), "executor": spec.executor, "reserved_until": None}
                host = models.Host.model_validate({**plan.model_dump(mode="json"), **asked})
            hosts.append(host)
        return hosts

    def reservations(self) -> Iterator[models.Reservation]:
        return map(models.Reservation.model_validate, views.reservations(self._state, self._service.time.now()))

    def reservation(self, name: str) -> models.Reservation:
        found = self._state.reservations.get(name)
        if found is None:
            raise _unknown("reservation", name)
        return self.reserved(found)

    def reserved(self, found: Reservation) -> models.Reservation:
        """One that there is, was, or would be."""
        return models.Reservation.model_validate(views.reservation(self._state, found, self._service.time.now()))

    # --- jobs ---------------------------------------------------------------------------------------------

    def jobs(self, limit: int, cursor: str, states: set[str], wanted: dict[str, str]) -> models.Page[models.Job]:
        """Jobs after the id `cursor` that match. A page may be short, or empty, and yet not the last one."""
        after = int(cursor) if cursor.isdecimal() else 0
        items: list[models.Job] = []
        component, reservation = wanted.pop("component", ""), wanted.pop("reservation", "")
        estimates = Estimates(self._state, self._service.time.now())
        looked_at = 0
        for found in self._jobs_of(component) if component else list(self._state.jobs.values()):
            if (job_id := found.id) <= after:
                continue
            if len(items) == limit or looked_at == MAX_LOOKED_AT:
                return models.Page(items=items, next_cursor=str(after))
            looked_at += 1
            after = job_id
            # Looked at before it is made into a view, which is what takes time.
            if reservation and found.asks.reservation != reservation:
                continue
            fields = {"user": found.user, "queue": found.queue, "host": found.host, "name": found.name}
            if all(not value or fields[field] == value for field, value in wanted.items()) and (
                not states or found.state.value in states
            ):
                items.append(_job(views.job(self._state, found, estimates=estimates)))
        return models.Page(items=items)

    def _jobs_of(self, component: str) -> list[JobState]:
        """Those that are compute groups of a component, or of any, and have not ended; in the order of their ids."""
        components = self._state.components
        named = components.values() if component == ANY_COMPONENT else [components.get(component, {})]
        return [self._state.jobs[job_id] for job_id in sorted(job_id for jobs in named for job_id in jobs)]

    def job(self, job_id: int) -> models.Job:
        """With `why` it waits, and when it will start."""
        found, now = find_job(self._state, job_id), self._service.time.now()
        return _job(views.job(self._state, found, now, Estimates(self._state, now)))

    def tasks(self, job_id: int, limit: int, cursor: str, states: set[str]) -> models.Page[models.Task]:
        found = find_job(self._state, job_id)
        first = int(cursor) if cursor.isdecimal() else 0
        items: list[models.Task] = []
        for position in range(first, len(found.codes)):
            if len(items) == limit or position - first == MAX_LOOKED_AT:
                return models.Page(items=items, next_cursor=str(position))
            if not states or found.state_of(position).value in states:
                items.append(models.Task.model_validate(views.task(self._state, found, position)))
        return models.Page(items=items)

    def explain(self, job_id: int) -> models.Explanation:
        told = explain(self._state, find_job(self._state, job_id), self._service.time.now())
        return models.Explanation.model_validate(asdict(told))

    def decision(self, job_id: int, task: int | None) -> DecisionRecord:
        find_job(self._state, job_id)
        return record_of(self._state, job_id, task)

    def commitments(self, limit: int, cursor: str) -> models.Page[models.Commitment]:
        """By position: what is committed changes all the time, so a page is a look, not a snapshot."""
        start = int(cursor) if cursor.isdecimal() else 0
        found = list(islice(views.commitments(self._state), start, start + limit + 1))
        items = [models.Commitment.model_validate(view) for view in found[:limit]]
        return models.Page(items=items, next_cursor=str(start + limit) if len(found) > limit else None)

    def quarantine(self) -> Iterator[models.Quarantined]:
        return (models.Quarantined.model_validate(view) for view in views.quarantine(self._state))


def _job(view: dict[str, Any]) -> models.Job:
    """The key without the user's id that it is stored under."""
    return models.Job.model_validate({**view, "key": view["key"].partition(":")[2]})


def _named(items: Iterable[Named], what: str, name: str) -> Named:
    for item in items:
        if item.name == name:
            return item
    raise _unknown(what, name)


def _unknown(what: str, name: str) -> UnknownNameError:
    return UnknownNameError(f"there is no {what} {name}", field=what, hint=f"See lavalite {what}s.")
