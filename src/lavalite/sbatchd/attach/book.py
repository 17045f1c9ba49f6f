"""What stands on this node × what is ordered of it → what to do, in order, and what to report. Pure.

    ordered ──► new ──► ready ◄──► lost        any ──► leaving (ordered absent) ──► gone
                 └────► failed

What takes long is begun, and asked for again now and then until it is ready (not_yet).

Laws, each held by a property test: whatever is ordered, and wherever it is killed and begun anew, in the end exactly
what was ordered stands; what was not named stays; an incarnation is never taken for another; of one host a circuit is
laid before its exports are opened and those before anything is attached, and all of it goes in the reverse order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Literal, NamedTuple

from lavalite.sbatchd.attach.records import Record
from lavalite.sbatchd.attach.roles import Key, Made
from lavalite.wire.frames import PartOrder, PartState

RANKS = {"circuit": 0, "export": 1, "disk": 2, "swap": 2, "vm": 3}
"""Of one host, what has a lower rank is made first and removed last."""
BEING_REMOVED = "it is being taken away"


class Work(NamedTuple):
    verb: Literal["make", "remove"]
    record: Record


class Beside(NamedTuple):
    """Other disks of a disk's host. `mirrors`: whose place it takes, if that stands still, leaving or not. `stays`:
    those that are to stay. `heir`: of these the one that takes its place, and whether that holds everything.
    """

    mirrors: Key | None
    stays: tuple[Key, ...]
    heir: Key | None
    heir_is_ready: bool


class Book:
    """Changed by its methods alone. What they give back is to be written down before anything else is done."""

    def __init__(
        self,
        records: Iterable[Record],
        roles: Collection[str],
        ports: Iterable[int] = (),
        usable: Callable[[int], bool] = lambda port: True,
    ) -> None:
        """`ports`: those that exports may have; `usable`: whether nothing else on this machine has it."""
        self.records = {record.key: record for record in records}
        self._roles, self._ports, self._usable = roles, tuple(ports), usable
        for record in list(self.records.values()):
            old = self.records.get(record.key._replace(part=record.order.mirrors))
            if record.state == "ready" and record.order.role == "disk" and old is not None and not old.leaving:
                # The machine may have begun anew, and then it is a copy no more.
                self.records[record.key] = record.but(state="new")
        self._due = {
            key for key, record in self.records.items() if record.leaving or record.state in ("new", "ready")
        }
        self._later: set[Key] = set()
        self._busy: dict[Key, int] = {}
        """With the version of the order that is being carried out."""
        self._waiting: dict[Key, PartOrder] = {}
        self._refused: dict[Key, str] = {}
        self._gone: dict[Key, PartOrder] = {}
        self.address = ""
        """Where exports listen."""

    # --- what is ordered

    def order(self, orders: Iterable[PartOrder]) -> list[Record]:
        """The records that are new or changed."""
        before = dict(self.records)
        self._waiting, self._refused, self._gone = {}, {}, {}
        for order in sorted(orders, key=lambda order: RANKS.get(order.role, 0)):
            key = Key.of(order)
            if order.want == "absent":
                self._leave(key, order)
            elif (record := self.records.get(key)) is None:
                self._admit(key, order)
            elif record.leaving:
                self._waiting[key] = order
            elif order.version > record.order.version:
                self._change(record, order)
        return [record for key, record in self.records.items() if before.get(key) != record]

    def _leave(self, key: Key, order: PartOrder) -> None:
        record = self.records.get(key)
        if record is None:
            self._gone[key] = order
        elif not record.leaving:
            leaving = record.order.model_copy(update={"want": "absent", "version": order.version})
            self.records[key] = record.but(order=leaving, reason="")
            self._due.add(key)
            self._later.discard(key)
        elif order.version > record.order.version:
            newer = record.order.model_copy(update={"version": order.version})
            self.records[key] = record.but(order=newer)

    def _change(self, record: Record, order: PartOrder) -> None:
        kept = {"port": record.order.port, "address": record.order.address} if order.role == "export" else {}
        order = order.model_copy(update=kept)
        same = order.model_copy(update={"version": record.order.version}) == record.order
        if same and record.state == "ready":
            self.records[record.key] = record.but(order=order, version=order.version)
            return
        self.records[record.key] = record.but(order=order)
        self._due.add(record.key)

    def _admit(self, key: Key, order: PartOrder) -> None:
        reason = self._refusal(key, order)
        if not reason and order.role == "export":
            taken = {record.order.port for record in self.records.values() if record.order.role == "export"}
            port = next((port for port in self._ports if port not in taken and self._usable(port)), 0)
            order = order.model_copy(update={"port": port, "address": self.address})
            reason = "" if port else "all of export_ports are taken on this node"
        if reason:
            self._waiting[key], self._refused[key] = order, reason
            return
        self.records[key] = Record(order=order)
        self._due.add(key)
        self._relay(order)

    def _refusal(self, key: Key, order: PartOrder) -> str:
        if order.role not in self._roles:
            return f"this node has nothing that makes a {order.role}"
        for other in self.records.values():
            if (other.key.part, other.key.role) == (key.part, key.role):
                return "another incarnation stands: it has to be ordered away first"
            if order.role == other.order.role == "swap" and order.host != other.order.host:
                return f"swap is the whole machine's, and the far memory of {other.order.host} is here already"
        return ""

    def _relay(self, order: PartOrder) -> None:
        """What travels in the circuits of this thing's host has changed."""
        for key, record in self.records.items():
            if _same_host(record.order, order) and key.role == "circuit" != order.role and not record.leaving:
                self._due.add(key)

    # --- what to do

    def work(self) -> list[Work]:
        """What can be begun now; each counts as begun."""
        found = [Work("remove" if record.leaving else "make", record) for record in self._free()]
        for work in found:
            self._due.discard(work.record.key)
            self._busy[work.record.key] = work.record.order.version
        return found

    def _free(self) -> list[Record]:
        free = []
        for key in sorted(self._due - self._busy.keys()):
            record, rank = self.records[key], RANKS[key.role]
            others = [
                other
                for name, other in self.records.items()
                if name != key and other.order.host == record.order.host and other.leaving == record.leaving
            ]
            if record.leaving:
                held = any(RANKS[other.key.role] > rank for other in others)
            else:
                open_ones = self._due | self._busy.keys()
                held = any(RANKS[other.key.role] < rank and other.key in open_ones for other in others)
            if not held:
                free.append(record)
        return free

    def made(self, key: Key, made: Made | None, reason: str = "") -> Record:
        """It was made, or why not. The record as it is now."""
        version, record = self._busy.pop(key), self.records[key]
        if made is not None:
            record = record.but(made=made, version=version, state="ready", reason="")
        elif not record.leaving:
            was_ready = record.state == "ready" and version == record.version  # and the machine began anew, say
            record = record.but(state="lost" if was_ready else "failed", reason=reason, version=version)
        self.records[key] = record
        return record

    def not_yet(self, key: Key) -> None:
        """It was begun, and is to be asked for again."""
        del self._busy[key]
        if not self.records[key].leaving:
            self._later.add(key)

    def removed(self, key: Key, reason: str = "") -> list[Record]:
        """It is gone, or why not. The records that are new; its own goes where it is gone."""
        del self._busy[key]
        record = self.records[key]
        if reason:
            self.records[key] = record.but(reason=reason)
            return [self.records[key]]
        del self.records[key]
        self._due.discard(key)
        self._later.discard(key)
        self._ask_again()  # somebody may have waited for that
        self._gone[key] = record.order
        self._relay(record.order)
        before = set(self.records)
        waiting, self._waiting, self._refused = self._waiting, {}, {}
        for other, order in waiting.items():
            if (standing := self.records.get(other)) is None:
                self._gone.pop(other, None)
                self._admit(other, order)
            elif standing.leaving:
                self._waiting[other] = order
        return [self.records[new] for new in self.records.keys() - before]

    def lost(self, key: Key, reason: str) -> Record | None:
        """What was ready broke. None where that does not count any more."""
        record = self.records.get(key)
        if record is None or record.state != "ready" or record.leaving or key in self._busy:
            return None
        self.records[key] = record.but(state="lost", reason=reason)
        return self.records[key]

    def retry(self) -> None:
        """What could not be removed is tried again, and what was not ready yet is asked for."""
        self._ask_again()
        self._due |= {key for key, record in self.records.items() if record.leaving and key not in self._busy}

    def _ask_again(self) -> None:
        self._due |= self._later & self.records.keys()
        self._later.clear()

    def ready(self) -> list[Record]:
        """What is to be looked after."""
        begun = self._busy.keys() | self._due | self._later
        idle = [record for key, record in self.records.items() if key not in begun]
        return [record for record in idle if record.state == "ready" and not record.leaving]

    # --- what to tell

    def picture(self) -> list[PartState]:
        """All that stands, all that was refused, and what was ordered away and is."""
        told = [_told(record) for record in self.records.values() if record.state != "new" or record.leaving]
        for key, reason in self._refused.items():
            told.append(_state(self._waiting[key], "failed", reason=reason))
        told += [_state(order, "gone") for order in self._gone.values()]
        return sorted(told, key=lambda state: (state.host, state.part, state.role, state.incarnation))

    def beside(self, disk: PartOrder) -> Beside:
        """What else of its host there is."""
        others = [r for r in self.records.values() if _same_host(r.order, disk) and r.order.role == "disk"]
        others = [record for record in others if record.order.part != disk.part]
        mirrored = [record.key for record in others if record.order.part == disk.mirrors]
        stay = [record for record in others if not record.leaving]
        heir = next((record for record in stay if record.order.mirrors == disk.part), None)
        whole = heir is not None and heir.state == "ready" and heir.key not in self._later
        return Beside(next(iter(mirrored), None), tuple(r.key for r in stay), heir.key if heir else None, whole)

    def ports(self, circuit: PartOrder) -> tuple[list[int], list[int]]:
        """The ports that travel in a circuit: of this node's exports, and of the peer's."""
        own, far = set(), set()
        for record in self.records.values():
            order = record.order
            if not _same_host(order, circuit):
                continue
            if order.role == "export" and order.peer_address == circuit.peer_address:
                own.add(order.port)
            elif order.role in ("disk", "swap", "vm") and order.address == circuit.peer_address:
                far.add(order.port)
        return sorted(own), sorted(far)


def _same_host(one: PartOrder, other: PartOrder) -> bool:
    return (one.host, one.incarnation) == (other.host, other.incarnation)


def _told(record: Record) -> PartState:
    if not record.leaving:
        made = record.made
        more = {"address": made.address, "port": made.port, "secret": made.secret,
                "device": made.device, "path": made.path} if record.state == "ready" else {}  # fmt: skip
        return _state(record.order, record.state, record.reason, version=record.version, **more)
    if record.reason or record.state == "new":
        return _state(record.order, "failed", record.reason or BEING_REMOVED)
    return _state(record.order, record.state, version=record.version)


def _state(order: PartOrder, state: str, reason: str = "", **more: object) -> PartState:
    fields = {"part": order.part, "role": order.role, "host": order.host, "incarnation": order.incarnation,
              "version": order.version, "state": state, "reason": reason}  # fmt: skip
    return PartState.model_validate(fields | more)
