"""The table `inet lavalite_parts`: one chain for each thing, so that each is made and taken away by itself.

Every change is one transaction of nft's. The table goes with its last chain.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from lavalite.sbatchd.attach.root.request import run

TABLE = "inet lavalite_parts"


def family(address: str) -> str:
    """`ip` or `ip6`. Raises ValueError for what is no address: it goes into rules."""
    return "ip" if ipaddress.ip_address(address).version == 4 else "ip6"


def put(chain: str, hook: str, rules: Sequence[str]) -> None:
    """The chain with these rules and no others. `hook`: input or output. Raises LavaLiteError."""
    assert re.fullmatch(r"[a-z0-9_]+", chain)
    lines = [
        f"add table {TABLE}",
        f"add chain {TABLE} {chain} {{ type filter hook {hook} priority 0; policy accept; }}",
        f"flush chain {TABLE} {chain}",
        *(f"add rule {TABLE} {chain} {rule}" for rule in rules),
    ]
    run(["nft", "-f", "-"], text="\n".join(lines) + "\n")


def drop(chain: str) -> None:
    """No error where there is none."""
    said = run(["nft", "list", "table", *TABLE.split()], check=False)
    chains = re.findall(r"^\s*chain (\S+) \{", said, re.MULTILINE)
    if chain in chains:
        lines = [f"flush chain {TABLE} {chain}", f"delete chain {TABLE} {chain}"]
        run(["nft", "-f", "-"], text="\n".join(lines) + "\n")
        chains.remove(chain)
    if said and not chains:
        run(["nft", "delete", "table", *TABLE.split()], check=False)


def only_from(port: int, peer: str) -> list[str]:
    """Rules by which nobody but the peer reaches a port of this node."""
    own = family(peer)
    other = "ipv6" if own == "ip" else "ipv4"
    return [f"tcp dport {port} {own} saddr != {peer} drop", f"tcp dport {port} meta nfproto {other} drop"]


def to_class(handle: str, peer: str, own: Sequence[int], far: Sequence[int]) -> list[str]:
    """Rules by which what goes to the peer, from own ports or to its, belongs to a class of HTB."""
    start = f"{family(peer)} daddr {peer} tcp"
    found = []
    for side, ports in (("sport", own), ("dport", far)):
        if ports:
            listed = ", ".join(str(int(port)) for port in ports)
            found.append(f"{start} {side} {{ {listed} }} meta priority set {handle}")
    return found
