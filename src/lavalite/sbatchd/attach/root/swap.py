"""Far memory: an export of another node's memory, as swap. By the kernel's nbd or not at all.

Never through a loop device or FUSE: those need memory themselves to write, and so would wait for each other for ever.
"""

from __future__ import annotations

from typing import Any

from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.attach.look import is_connected, is_swap
from lavalite.sbatchd.attach.root import nbd
from lavalite.sbatchd.attach.root.request import Request, run

SWAPOFF_SECONDS = 600.0
"""Everything has to be paged back over the network."""


def make(request: Request) -> dict[str, Any]:
    address, port = str(request.order["address"]), int(request.order["port"])
    if not nbd.is_usable():
        raise LavaLiteError(
            "this node's kernel has no nbd, and far memory needs it",
            hint="Load the module nbd, or compose it as a VM.",
        )
    device = nbd.attach(request.slug, address, port, connected=is_connected(address, port))
    if not is_swap(device):
        run(["mkswap", device])
        # Without a priority it comes after all swap that this node has of its own: near goes before far.
        run(["swapon", device])
    nbd.remember(request.slug)
    return {"device": device}


def remove(request: Request) -> dict[str, Any]:
    device = nbd.find(request.slug)
    if device and is_swap(device):
        try:
            run(["swapoff", device], seconds=SWAPOFF_SECONDS)
        except LavaLiteError as error:
            raise LavaLiteError(
                f"{device} cannot be taken out of swap: {error}",
                hint="What lies there has no room in this node's memory; end something that runs on it.",
            ) from None
    nbd.detach(request.slug)
    return {}
