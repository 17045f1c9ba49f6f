"""Room for a job once some of what runs has ended: the sums behind reclaim and preemption.

    free now + what those give back that stop already, or could be stopped - what reservations and planned starts keep

Nothing is decided here, and nothing of the state changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from lavalite.control import affinity, reservations
from lavalite.control.ahead import Ahead, keeps_of, releases_of
from lavalite.control.demand import WaitingClass
from lavalite.control.seating import NOTHING_HELD, Held, Rooms, RoomsNow
from lavalite.control.state import ClusterState
from lavalite.control.tasks import JobState, TaskKey, TaskRun
from lavalite.model.resources import CPU, GPU, PLACES, WHOLE
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import DeviceRow

STUCK_SECONDS = 60.0
"""What was told to stop, and is there so long after it should be gone, is not counted on."""


@dataclass(slots=True)
class VacatedRow:
    """A provider as it would be without some tasks. `room` is for how many of the job's there is enough; of parts
    `rooms` says so, as far as it was asked."""

    row: int
    free: dict[str, int]
    gpus: dict[str, int]
    gone: set[TaskKey] = field(default_factory=set)
    room: int = 0
    rooms: dict[RequestClass, int] = field(default_factory=dict)

    def copy(self) -> VacatedRow:
        return replace(self, free=dict(self.free), gpus=dict(self.gpus), gone=set(self.gone), rooms={})


class Vacated(Rooms):
    """For tasks of one job, as of one moment of a pass, in which nothing is kept for the job itself."""

    def __init__(self, state: ClusterState, waiting: WaitingClass, job: JobState, now: float) -> None:
        self._state, self._wanted, self._job, self._now = state, waiting.wanted, job, now
        self._until = reservations.would_last_until(state, job, now)
        eligible = np.logical_or.reduce([wanted.eligible(state.columns) for wanted in waiting.each])
        self._eligible = eligible & state.columns.ready
        leaning = affinity.leaning(state, job)
        if leaning is not None and leaning.open is not None:
            self._eligible = self._eligible & leaning.open
        self._open = {
            wanted: wanted.eligible(state.columns) & self._eligible for wanted in waiting.each if waiting.parts
        }
        self._now_rooms = {wanted: self._rooms_now(wanted) for wanted in waiting.each}
        self._before = self._now_rooms[waiting.wanted]
        self._rows: dict[str, VacatedRow] = {}
        self._may: dict[str, bool] = {}

    def may_help(self, provider: str) -> bool:
        """Whether the job's tasks may go there at all."""
        if provider not in self._may:
            row = self._state.columns.row(provider)
            self._may[provider] = row is not None and bool(self._eligible[row])
        return self._may[provider]

    def take(self, *runs: TaskRun, only: str = "") -> None:
        """Look at it all as if these had ended, or as if they gave back this kind alone."""
        touched: dict[str, VacatedRow] = {}
        for run in runs:
            provider = provider_of(self._state, run)
            if self.may_help(provider) and run.key not in self._row(provider).gone:
                if provider not in touched:
                    touched[provider] = self._rows[provider] = self._row(provider).copy()
                self._give_back(touched[provider], run, provider, only)
        for provider, vacant in touched.items():
            vacant.room = 0 if self._open else self._room(provider, vacant, self._wanted)

    def room(self, provider: str) -> int:
        """For how many tasks there is room on the provider."""
        if provider in self._rows:
            return self._rows[provider].room
        row = self._state.columns.row(provider)
        return 0 if row is None else self._before.get(row, 0)

    def rooms(self) -> dict[int, int]:
        """Room by row, rows without any left out."""
        found = self._before | {vacant.row: vacant.room for vacant in self._rows.values()}
        return {row: tasks for row, tasks in found.items() if tasks > 0}

    def room_of_all(self) -> int:
        """For how many tasks there is room on all rows together."""
        return sum(self.rooms().values())

    def rows(self, wanted: RequestClass) -> dict[int, int]:
        """Of one part of the job; of a job without parts as `rooms`."""
        if wanted not in self._open:
            return self.rooms()
        found = dict(self._now_rooms[wanted])
        for provider, vacant in self._rows.items():
            if wanted not in vacant.rooms:
                is_open = self._open[wanted][vacant.row]
                vacant.rooms[wanted] = self._room(provider, vacant, wanted) if is_open else 0
            found[vacant.row] = vacant.rooms[wanted]
        return {row: tasks for row, tasks in found.items() if tasks > 0}

    def beside(self, wanted: RequestClass, row: int, held: Held) -> int:
        provider = self._state.columns.names[row]
        if provider in self._rows:
            return self._room(provider, self._rows[provider], wanted, held)
        return RoomsNow(self._state, self._job, self._now).beside(wanted, row, held)

    def devices(self, row: int) -> tuple[DeviceRow, ...]:
        provider, devices = self._state.columns.names[row], self._state.columns.devices(row)
        return _devices(devices, self._rows[provider].gpus) if provider in self._rows else devices

    def _rooms_now(self, wanted: RequestClass) -> dict[int, int]:
        room = reservations.room(self._state, wanted, self._job, self._now)
        return {row: tasks for row, tasks in room.items() if self._eligible[row]}

    def snapshot(self) -> dict[str, VacatedRow]:
        """As it is now. Rows are never changed, but replaced."""
        return dict(self._rows)

    def restore(self, before: dict[str, VacatedRow]) -> None:
        self._rows = dict(before)

    def lacks(self, provider: str, tasks: int) -> dict[str, int]:
        """What is short there, by amounts alone, for so many tasks."""
        free = self._row(provider).free
        short = {kind: amount * tasks - free.get(kind, 0) for kind, amount in self._wanted.needs.items()}
        return {kind: amount for kind, amount in short.items() if amount > 0}

    def _row(self, provider: str) -> VacatedRow:
        """As it is by now; one that the job's tasks may go to."""
        vacant = self._rows.get(provider)
        if vacant is None:
            row = self._state.columns.row(provider)
            assert row is not None, "the job's tasks may go there"
            _, free = self._state.amounts_on(provider)
            vacant = VacatedRow(row, free, self._state.book.device_free(provider, GPU), room=self._before.get(row, 0))
            self._rows[provider] = vacant
        return vacant

    def _give_back(self, vacant: VacatedRow, run: TaskRun, provider: str, only: str) -> None:
        only = CPU if run.suspend_requested and not (run.cancel_requested or run.requeue_requested) else only
        vacant.gone.add(run.key)
        if not only:
            vacant.free[PLACES] += self._state.book.places(run.key.owner, self._state.places.node(provider))
        for share in self._state.shares_on(run.key.owner, provider):
            if only and share.kind != only:
                continue
            vacant.free[share.kind] = vacant.free.get(share.kind, 0) + share.amount
            for device in share.devices if share.kind == GPU else ():
                if device in vacant.gpus:
                    vacant.gpus[device] += share.amount // len(share.devices)

    def _room(self, provider: str, vacant: VacatedRow, wanted: RequestClass, held: Held = NOTHING_HELD) -> int:
        state = self._state
        free = held.less({kind: vacant.free.get(kind, 0) for kind in wanted.needs})
        devices: tuple[DeviceRow, ...] = ()
        if wanted.gpu is not None:
            devices = held.less_devices(_devices(state.columns.devices(vacant.row), vacant.gpus))
        most = wanted.tasks_in(free, devices) if wanted.amounts else 0
        if most > 0 and (keeps := keeps_of(state, provider, self._now)):
            releases = releases_of(state, provider, self._now, without=vacant.gone)
            points = Ahead(releases, keeps).points(self._now, self._until)
            most = min([most, *(p.beside(wanted, free, devices) for p in points if p.at < self._until)])
        return max(0, most)


def _devices(devices: tuple[DeviceRow, ...], free: Mapping[str, int]) -> tuple[DeviceRow, ...]:
    return tuple(replace(device, free=min(WHOLE, free.get(device.id, 0))) for device in devices)


def provider_of(state: ClusterState, run: TaskRun) -> str:
    """On what a task is placed: a node, a logical host, or a place of one."""
    host = state.jobs[run.key.job].host
    return state.places.of(host).get(run.node, host) if host else run.node


def stops(run: TaskRun, now: float) -> bool:
    """Whether it was told to end or to stand still, and can still be counted on to do so."""
    asked = run.cancel_requested or run.requeue_requested or run.suspend_requested
    return asked and run.stop_by is not None and now < run.stop_by + STUCK_SECONDS
