"""One command to the kernel's NBD client, as a message of generic netlink (include/uapi/linux/nbd-netlink.h)."""

from __future__ import annotations

from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, genlmsg, nla
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from lavalite.base.errors import LavaLiteError


class nbdmsg(genlmsg):  # type: ignore[misc]
    nla_map = (
        ("NBD_ATTR_UNSPEC", "none"),
        ("NBD_ATTR_INDEX", "uint32"),
        ("NBD_ATTR_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_BLOCK_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_TIMEOUT", "uint64"),
        ("NBD_ATTR_SERVER_FLAGS", "uint64"),
        ("NBD_ATTR_CLIENT_FLAGS", "uint64"),
        ("NBD_ATTR_SOCKETS", "sockets"),
        ("NBD_ATTR_DEAD_CONN_TIMEOUT", "uint64"),
        ("NBD_ATTR_DEVICE_LIST", "hex"),
        ("NBD_ATTR_BACKEND_IDENTIFIER", "asciiz"),
    )

    class sockets(nla):  # type: ignore[misc]
        nla_map = (("NBD_SOCK_ITEM_UNSPEC", "none"), ("NBD_SOCK_ITEM", "item"))

        class item(nla):  # type: ignore[misc]
            nla_map = (("NBD_SOCK_UNSPEC", "none"), ("NBD_SOCK_FD", "uint32"))


def send(command: int, attributes: list[list[Any]], word: str) -> None:
    """Raises LavaLiteError. `word`: what the command is to do, for people."""
    message = nbdmsg()
    message["cmd"], message["version"], message["attrs"] = command, 1, attributes
    netlink = GenericNetlinkSocket()
    try:
        netlink.bind("nbd", nbdmsg)
        for _ in netlink.nlm_request(message, msg_type=netlink.prid, msg_flags=NLM_F_REQUEST | NLM_F_ACK):
            pass
    except NetlinkError as error:
        raise LavaLiteError(f"the kernel does not {word} an NBD device ({error})") from None
    finally:
        netlink.close()
