"""A virtual machine goes to another anchor while it runs (ADR 13): what each node is to have, step by step. Pure.

                       EXPORT     RECEIVE     SEND        RUN         DETACH      WITHDRAW
    the way            laid *     present     present     present     present     absent *
    old anchor: VM     as it was  as it was   outgoing *  (as told)   absent *    absent
    new anchor: VM     –          incoming *  incoming    runs *      runs        runs
    its far disks      present    present     present     present     present     absent *

    unwound                                               DETACH      WITHDRAW
    old anchor: VM                                        as it was * as it was
    new anchor: VM                                        absent *    absent
    the way                                               present     absent *

    *  has to be heard of before the host goes on

Never two run: the new anchor hears `runs` only after the old one has said that it handed over, which is durable as
RUN, and from RUN on the old one is never told to run. Whoever unwinds before has never told the new one to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lavalite.control.hosts import orders
from lavalite.control.hosts.orders import Fabric, Ordered
from lavalite.model.host import Circuit, Holding, LogicalHost, Part, Step
from lavalite.model.resources import MEMORY, STORAGE

HANDED_OVER = frozenset({Step.RUN, Step.DETACH, Step.WITHDRAW})
COPIES = 4
"""So many times what all of it takes alone may go by until it is handed over."""


def is_unwound(host: LogicalHost) -> bool:
    return host.was is None


def ordered(host: LogicalHost, fabric: Fabric) -> Iterator[Ordered]:
    """All that is ordered for a host that moves, or that is to stay after all."""
    yield from _ways(host, fabric)
    yield from _old(host, fabric)
    yield from _new(host, fabric)


def settled(host: LogicalHost, after: Holding) -> dict[str, object]:
    """What changes in the record when all is done: where it is, and that the way is gone."""
    if not host.moves_to:
        return {}
    if is_unwound(host):
        return {"moves_to": ""}
    return {"moves_to": "", "anchor": host.moves_to, "circuits": []}


def send_seconds(host: LogicalHost) -> float:
    """How long SEND may last on account of what travels: its memory, and all that is on its disks."""
    if host.step is not Step.SEND or host.was is None:
        return 0.0
    carried = sum(part.amount for part in host.was.parts if part.kind in (MEMORY, STORAGE))
    way = _way(host)
    return COPIES * carried * 8 / max(1, way.bits_per_second) if way else 0.0


def _way(host: LogicalHost) -> Circuit | None:
    return next((each for each in host.circuits if each.provider == host.moves_to), None)


def _home(host: LogicalHost) -> Holding:
    """What it has, or had, at the old anchor."""
    return host.was or host.becomes or host.holding


def _ways(host: LogicalHost, fabric: Fabric) -> Iterator[Ordered]:
    """Circuits, and the exports of what was another node's."""
    goes, home = host.step is Step.WITHDRAW, _home(host)
    version = 2 * host.version + goes
    kept = {circuit.id for circuit in home.circuits} if is_unwound(host) else set()
    for circuit in host.circuits:
        absent = goes and circuit.id not in kept
        for node, peer in ((circuit.anchor, circuit.provider), (circuit.provider, circuit.anchor)):
            order = orders.circuit_order(host, circuit, peer, version, absent, fabric)
            yield Ordered(node, order, absent or host.step is Step.EXPORT, absent or bool(order.peer_address))
    for part in home.parts:
        if host.is_far(part) and part.kind in (STORAGE, MEMORY):
            absent = goes and not is_unwound(host)
            order = orders.export_order(host, part, version, absent, fabric)
            yield Ordered(part.provider, order, absent, absent or bool(order.peer_address))


def _old(host: LogicalHost, fabric: Fabric) -> Iterator[Ordered]:
    step, home = host.step, _home(host)
    if is_unwound(host):
        yield orders.machine_order(host, home, 2 * host.version + 1, step is Step.DETACH, fabric)
    elif step in (Step.EXPORT, Step.RECEIVE):
        yield orders.machine_order(host, home, 2 * host.version - 1, False, fabric)
    elif step is Step.SEND:
        one = orders.machine_order(host, home, 2 * host.version, True, fabric)
        waits = fabric.told(host.moves_to, one.order.key)
        known = waits is not None and waits.state == "ready" and bool(waits.port)
        way = _way(host)
        outgoing = {
            "address": (waits.address or fabric.address(host.moves_to)) if waits else "",
            "port": waits.port if waits else 0,
            "secret": waits.secret if waits else "",
            "bits_per_second": way.bits_per_second if way else 0,
            "carried": [part.id for part in home.parts if part.kind == STORAGE],
        }
        yield replace(one, order=replace(one.order, vm={**one.order.vm, "outgoing": outgoing}), whole=known)
    elif step is not Step.RUN:  # then it stays as it was told at SEND
        yield orders.machine_order(host, Holding(), 2 * host.version + 1, step is Step.DETACH, fabric)


def _new(host: LogicalHost, fabric: Fabric) -> Iterator[Ordered]:
    there = host.model_copy(update={"anchor": host.moves_to})
    if is_unwound(host):
        yield orders.machine_order(there, Holding(), 2 * host.version, host.step is Step.DETACH, fabric)
        return
    becomes = host.becomes or Holding()
    if host.step in HANDED_OVER:
        yield orders.machine_order(there, becomes, 2 * host.version + 1, host.step is Step.RUN, fabric)
    elif host.step is not Step.EXPORT:
        one = orders.machine_order(there, becomes, 2 * host.version, host.step is Step.RECEIVE, fabric)
        runs = fabric.told(host.anchor, one.order.key)
        hardware = runs.device if runs is not None else ""
        incoming = {"address": fabric.address(host.moves_to), "hardware": hardware}
        disks = [{**disk, **_place(host, disk["part"])} for disk in one.order.vm["disks"]]
        vm = {**one.order.vm, "disks": disks, "incoming": incoming}
        yield replace(one, order=replace(one.order, vm=vm), whole=bool(hardware) and bool(incoming["address"]))


def _place(host: LogicalHost, part: str) -> dict[str, str]:
    """Whose place a disk of the new anchor takes: there is one of each."""

    def disks(holding: Holding | None) -> list[Part]:
        return [each for each in (holding.parts if holding else []) if each.kind == STORAGE]

    pairs = {new.id: old.id for old, new in zip(disks(host.was), disks(host.becomes), strict=False)}
    return {"mirrors": pairs[part]} if part in pairs else {}
