"""Bandwidth on the way to a peer: a class of HTB on the interface that leads there.

    1a17:      HTB at the root of the interface, laid with its first circuit and taken up with its last
    1a17:1     what the line carries
    1a17:10 …  a circuit each: sure of its rate, may have the line's when nobody else wants it
    1a17:ffff  everything else: what the circuits leave

Packets get to their class by `meta priority` in nftables, told apart by the peer's address and the ports of the
host's exports. Egress alone is shaped: the other end of a circuit does the same.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from pyroute2.iproute import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.attach.root import nft
from lavalite.sbatchd.attach.root.request import Request

MAJOR = 0x1A17
ROOT, WHOLE, DEFAULT = MAJOR << 16, MAJOR << 16 | 1, MAJOR << 16 | 0xFFFF
FIRST_MINOR, LAST_MINOR = 0x10, 0xFFF0
NO_PARENT = 0xFFFFFFFF
UNKNOWN_LINE_BITS = 10_000_000_000
LEAST_SHARE = 100
"""What is in no circuit gets at least one part in so many of the line, or nobody could log in to mend it."""
LEAST_BURST_BYTES = 64 * 1024
"""One segment as big as cards take them."""


def make(request: Request) -> dict[str, Any]:
    peer = str(request.order["peer_address"])
    try:
        nft.family(peer)
    except ValueError:
        raise LavaLiteError(f"a circuit needs the address of its peer, and {peer!r} is none") from None
    with _alone(request), IPRoute() as route:
        interface = _interface(route, peer)
        noted = _noted(request.file("circuit"))
        if noted and noted["interface"] != interface:
            _take_up(request, route, noted)
            noted = None
        if not noted:
            noted = {"interface": interface, "minor": _free_minor(request), "bits": 0}
        noted["bits"] = request.amount
        request.file("circuit").write_text(json.dumps(noted))
        _lay(request, route, noted)
        handle = f"{MAJOR:x}:{noted['minor']:x}"
        own, far = request.more.get("own_ports", []), request.more.get("far_ports", [])
        nft.put(f"circuit_{noted['minor']}", "output", nft.to_class(handle, peer, own, far))
    return {"device": f"{interface} {handle}"}


def remove(request: Request) -> dict[str, Any]:
    with _alone(request), IPRoute() as route:
        noted = _noted(request.file("circuit"))
        if noted:
            _take_up(request, route, noted)
    return {}


def _lay(request: Request, route: Any, noted: dict[str, Any]) -> None:
    index, line = _index(route, noted["interface"]), _line_bits(request, noted["interface"])
    circuits = _circuits(request, noted["interface"])
    taken = sum(other["bits"] for other in circuits)
    if taken > line:
        raise LavaLiteError(
            f"circuits of {taken} bit/s do not fit on {noted['interface']}, which carries {line}",
            hint="See line_bits_per_second in sbatchd.conf, if the interface says too little.",
        )
    _root(route, index, noted["interface"])
    _class(route, index, WHOLE, ROOT, line, line)
    _class(route, index, DEFAULT, WHOLE, max(line - taken, line // LEAST_SHARE), line, prio=1)
    for other in circuits:
        _class(route, index, MAJOR << 16 | other["minor"], WHOLE, other["bits"], line)


def _take_up(request: Request, route: Any, noted: dict[str, Any]) -> None:
    """Its packets first: they must not ask for a class that is gone."""
    nft.drop(f"circuit_{noted['minor']}")
    found = route.link_lookup(ifname=noted["interface"])
    if found and _ours(route, found[0]):
        others = [each for each in _circuits(request, noted["interface"]) if each["minor"] != noted["minor"]]
        if others:
            # Without a kind: pyroute2 would want to know the rate of a class that goes.
            _gone(lambda: route.tc("del-class", index=found[0], handle=MAJOR << 16 | noted["minor"]))
            line = _line_bits(request, noted["interface"])
            left = line - sum(other["bits"] for other in others)
            _class(route, found[0], DEFAULT, WHOLE, max(left, line // LEAST_SHARE), line, prio=1)
        else:
            # The kernel puts back what the interface has by default.
            _gone(lambda: route.tc("del", "htb", found[0], ROOT))
    request.file("circuit").unlink(missing_ok=True)


# --- HTB


def _root(route: Any, index: int, interface: str) -> None:
    if _ours(route, index):
        return
    for qdisc in route.get_qdiscs(index):
        if qdisc["parent"] == NO_PARENT and qdisc["handle"] != 0:
            raise LavaLiteError(
                f"{interface} has a queueing discipline of its own ({qdisc.get_attr('TCA_KIND')})",
                hint=f"Circuits need its root: `tc qdisc del dev {interface} root`.",
            )
    route.tc("add", "htb", index, ROOT, default=DEFAULT & 0xFFFF)


def _ours(route: Any, index: int) -> bool:
    qdiscs = route.get_qdiscs(index)
    return any(qdisc["handle"] == ROOT and qdisc["parent"] == NO_PARENT for qdisc in qdiscs)


def _class(route: Any, index: int, handle: int, parent: int, bits: int, most_bits: int, prio: int = 0) -> None:
    rate, most = bits // 8, most_bits // 8
    route.tc("replace-class", "htb", index, handle, parent=parent, rate=rate, ceil=most, prio=prio,
             burst=max(rate // 200, LEAST_BURST_BYTES), cburst=max(most // 200, LEAST_BURST_BYTES),
             quantum=max(1514, min(rate // 100, 200_000)))  # fmt: skip


def _gone(remove: Any) -> None:
    try:
        remove()
    except NetlinkError as error:
        if error.code not in (2, 22):  # ENOENT, EINVAL: there is none
            raise LavaLiteError(f"a circuit cannot be taken up ({error})") from None


# --- what there is


def _interface(route: Any, peer: str) -> str:
    try:
        (found,) = route.route("get", dst=peer)
        (link,) = route.link("get", index=found.get_attr("RTA_OIF"))
    except (NetlinkError, ValueError) as error:
        raise LavaLiteError(f"there is no way to {peer} ({error})") from None
    name: str = link.get_attr("IFLA_IFNAME")
    if name == "lo":
        raise LavaLiteError(f"{peer} is this node itself: there is nothing to reserve")
    return name


def _index(route: Any, interface: str) -> int:
    found = route.link_lookup(ifname=interface)
    if not found:
        raise LavaLiteError(f"there is no interface {interface} any more")
    return int(found[0])


def _line_bits(request: Request, interface: str) -> int:
    """What the configuration says, else the interface."""
    if configured := int(request.more.get("line_bits_per_second", 0)):
        return configured
    try:
        megabits = int(Path("/sys/class/net", interface, "speed").read_text())
    except (OSError, ValueError):
        megabits = -1
    return megabits * 1_000_000 if megabits > 0 else UNKNOWN_LINE_BITS


def _circuits(request: Request, interface: str) -> list[dict[str, Any]]:
    found = [_noted(file) for file in sorted(request.folder.glob("*.circuit"))]
    return [each for each in found if each and each["interface"] == interface]


def _free_minor(request: Request) -> int:
    taken = {each["minor"] for file in request.folder.glob("*.circuit") if (each := _noted(file))}
    return next(minor for minor in range(FIRST_MINOR, LAST_MINOR) if minor not in taken)


def _noted(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    except (OSError, ValueError):
        return None


class _alone:
    """Circuits share one tree: one at a time changes it."""

    def __init__(self, request: Request) -> None:
        self._folder = request.folder

    def __enter__(self) -> None:
        self._descriptor = os.open(self._folder, os.O_RDONLY)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)
