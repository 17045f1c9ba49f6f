"""An NBD export: bytes of this node's storage or memory, served by nbdkit to one consumer alone.

Storage is a file, and survives whatever becomes of nbdkit. Memory is nbdkit's own: once it has served and is down,
what it held is lost, and it is not begun anew under the same name.
"""

from __future__ import annotations

import secrets
from typing import Any

from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.attach.look import listens
from lavalite.sbatchd.attach.root import nft, services
from lavalite.sbatchd.attach.root.request import Request, make_room

TLS_USER = "lavalite"
MEMORY_LOST = "nbdkit ended, and with it the memory that it served"
CONFINED = ("NoNewPrivileges=yes", "CapabilityBoundingSet=", "ProtectSystem=strict", "ProtectHome=yes",
            "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX", "OOMScoreAdjust=-900",
            "TimeoutStopSec=2")  # fmt: skip
"""The last: nbdkit waits for its consumer to go, and what it served goes away in any case."""


def make(request: Request) -> dict[str, Any]:
    order = request.order
    port, address, peer = int(order["port"]), str(order["address"]), str(order["peer_address"])
    try:
        rules = nft.only_from(port, peer)
        nft.family(address)
    except ValueError as error:
        raise LavaLiteError(f"an export needs the addresses of this node and of its consumer: {error}") from None
    is_memory = order["kind"] == "memory"
    served = request.file("served")
    if not is_memory:
        make_room(request.storage, request.amount, preallocate=bool(request.more.get("preallocate")))
    elif served.exists() and not services.is_up(request):
        raise LavaLiteError(MEMORY_LOST, code="memory_lost")
    secret = _secret(request)
    nft.put(f"export_{port}", "input", rules)
    if not services.is_up(request):
        if is_memory:
            served.touch()
        services.start(request, _command(request, port, address), _properties(request))
    services.until(request, lambda: listens(port), "nbdkit")
    return {"address": address, "port": port, "secret": secret}


def remove(request: Request) -> dict[str, Any]:
    services.stop(request)
    nft.drop(f"export_{int(request.order['port'])}")
    for file in (request.storage, request.file("psk"), request.file("served")):
        file.unlink(missing_ok=True)
    return {}


def _command(request: Request, port: int, address: str) -> list[str]:
    # Not --filter=ip for the peer: that of nbdkit 1.32.5 takes no address at all. nftables keeps others away.
    command = ["nbdkit", "--foreground", "--ipaddr", address, "--port", str(port)]
    if request.order["tls"]:
        command += ["--tls=require", f"--tls-psk={request.file('psk')}"]
    if request.order["kind"] == "memory":
        return [*command, "memory", f"size={request.amount}"]
    return [*command, "file", f"file={request.storage}"]


def _properties(request: Request) -> list[str]:
    if request.order["kind"] == "memory":
        # Far memory that its own node had swapped out would be far twice.
        return [*CONFINED, "MemorySwapMax=0"]
    folder = request.storage.parent
    properties = [*CONFINED, f"ReadWritePaths={folder}", "Restart=on-failure", "RestartSec=100ms"]
    if iops := int(request.order["iops"]):
        properties += [f"IOReadIOPSMax={folder} {iops}", f"IOWriteIOPSMax={folder} {iops}"]
    return properties


def _secret(request: Request) -> str:
    if not request.order["tls"]:
        return ""
    file = request.file("psk")
    if not file.exists() or not file.read_text().strip():
        file.touch(mode=0o600)
        file.write_text(f"{TLS_USER}:{secrets.token_hex(32)}\n")
    return file.read_text().strip().partition(":")[2]
