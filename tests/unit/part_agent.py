"""An agent in memory that carries out orders of parts: late, one by one, and not always well. It checks them too.

What is ordered once is carried out once; what is not named stays as it is; only an order of absent takes it away.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import count

from disk_model import Devices

from lavalite.control.actions import PartKey, PartOrdered
from lavalite.control.events import PartReported

PORTS = count(10_000)


@dataclass
class PartAgent:
    """`has` outlives the agent's process; orders do not. `failing` are parts or roles that it cannot make."""

    eager: bool = True
    has: dict[PartKey, PartReported] = field(default_factory=dict)
    done: dict[PartKey, PartOrdered] = field(default_factory=dict)
    orders: dict[PartKey, PartOrdered] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)
    carried_out: list[PartOrdered] = field(default_factory=list)
    devices: Devices = field(default_factory=Devices)
    own_disks: set[PartKey] = field(default_factory=set)
    device_name: str = "/dev/mapper/disk"
    _told: tuple[PartReported, ...] | None = None
    _answers: dict[PartKey, PartReported] = field(default_factory=dict)

    def take(self, orders: tuple[PartOrdered, ...]) -> None:
        """All that is ordered from now on."""
        self.orders = {order.key: order for order in orders}
        assert len(self.orders) == len(orders), "one thing is ordered twice"
        self._answers = {key: told for key, told in self._answers.items() if key in self.orders}
        self._told = None

    def forget_orders(self) -> None:
        """The agent is another process, or has another session."""
        self.orders, self._answers, self._told = {}, {}, None

    def work(self, most: int) -> None:
        """Carry out orders that are not carried out yet."""
        due = [order for order in self.orders.values() if self._is_due(order)]
        for order in due[:most]:
            self.devices.write()
            self._carry_out(order)

    def _is_due(self, order: PartOrdered) -> bool:
        unanswered = order.want == "absent" and order.key not in self._answers
        return self.done.get(order.key) != order or unanswered

    def lose(self, part: str) -> None:
        """What is there of a part breaks by itself."""
        self.devices.lose(part)
        for key, found in self.has.items():
            if found.part == part and found.state == "ready":
                self.has[key] = replace(found, state="lost", reason="it broke")

    def reboot(self) -> None:
        """Nothing of it is there any more, and all that was carried out is to be carried out again."""
        self.has, self.done = {}, {}
        self.devices.legs.clear()
        self.devices.broken.clear()
        self.forget_orders()

    def has_news(self) -> bool:
        return self._all() != self._told

    def told(self) -> tuple[PartReported, ...]:
        self._told = self._all()
        return self._told

    def present(self) -> list[PartReported]:
        return list(self.has.values())

    def _all(self) -> tuple[PartReported, ...]:
        return tuple((self._answers | self.has).values())

    def _carry_out(self, order: PartOrdered) -> None:
        self.carried_out.append(order)
        before = self.done.get(order.key)
        assert before is None or order.version >= before.version, f"{order} comes after version {before.version}"
        if before is not None and order.version == before.version and order.want == "present":
            same = replace(
                before, address=order.address, port=order.port, secret=order.secret, peer_address="", vm={}
            )
            assert same == replace(order, peer_address="", vm={}), f"{order} is {before} with the same version"
        self.done[order.key] = order
        answer = PartReported(order.part, order.role, order.host, order.incarnation, order.version)
        if order.want == "absent":
            if reason := self._let_go(order):
                self.has[order.key] = replace(answer, state="failed", reason=reason)
                return
            self.has.pop(order.key, None)
            self._answers[order.key] = replace(answer, state="gone")
            return
        self._answers.pop(order.key, None)
        others = [k for k in self.has if k[:2] == (order.part, order.role) and k[2] != order.incarnation]
        assert not others, f"{order.part} is there of an earlier host: {others}"
        if order.role in ("disk", "swap") and order.peer:
            assert order.port and order.address, f"{order} does not say where it is"
        if {order.role, order.part} & self.failing:
            self.has[order.key] = replace(answer, state="failed", reason="no room on the disk")
            return
        if reason := self._attached(order):
            self.has[order.key] = replace(answer, state="failed", reason=reason)
            return
        port = next(PORTS) if order.role == "export" else 0
        was = self.has.get(order.key)
        port = was.port if was is not None and was.port else port
        device = self.device_name if order.role == "disk" else ""
        self.has[order.key] = replace(answer, port=port, secret="5ec4e7" if order.tls else "", device=device)

    # --- disks

    def _attached(self, order: PartOrdered) -> str:
        """Why a disk, or one of a machine, is not under its host's device; nothing where it is."""
        host = order.host, order.incarnation
        if order.role == "disk":
            if not order.peer:
                self.own_disks.add(order.key)
            return self.devices.attach(host, order.part, order.mirrors)
        if order.role != "vm":
            return ""
        wanted = {disk["part"]: disk.get("mirrors", "") for disk in order.vm["disks"] if disk["kind"] == "storage"}
        assert all(mirrors in wanted for mirrors in wanted.values() if mirrors), "there is nothing to be copied"
        gone = [part for part, _ in self.devices.legs.get(host, []) if part not in wanted]
        for part in gone:
            if reason := self.devices.detach(host, part, heir=min(wanted, default="")):
                return reason
        return next((why for part, other in wanted.items() if (why := self.devices.attach(host, part, other))), "")

    def _let_go(self, order: PartOrdered) -> str:
        """Why a disk stays; nothing where it is gone, with its bytes where they are this node's own."""
        host, leg = (order.host, order.incarnation), (order.part, order.incarnation)
        if order.role == "export":
            self.devices.disks.holds.pop(leg, None)
        elif order.role == "vm":
            for part, _ in list(self.devices.legs.get(host, [])):
                self.devices.detach(host, part, heir="")
        elif order.role == "disk":
            heirs = [one.part for one in self.orders.values() if (one.mirrors, one.want) == (order.part, "present")]
            if reason := self.devices.detach(host, order.part, heir=min(heirs, default="")):
                return reason
            if order.key in self.own_disks:
                self.own_disks.discard(order.key)
                self.devices.wipe(leg)
        return ""
