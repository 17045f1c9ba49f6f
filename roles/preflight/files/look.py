# Copyright: LavaLite authors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host says of itself before anything is changed on it: JSON on standard output.

The one argument is JSON: `listens` (variable: HOST:PORT), `addresses` (HOST or HOST:PORT), `reach` (HOST:PORT). The
answer: `taken` (what listens there and is not ours, in words), `unknown` (names that do not resolve), `silent` (where
nobody answers), `people` (account: user id).
"""

import glob
import ipaddress
import json
import os
import pwd
import socket
import sys
from pathlib import Path

LISTENING = "0A"
OURS = ("lavalite-", "lavalite.", "lavalite/")
FIRST_PERSON, LAST_PERSON = 1000, 59999
MOST_PEOPLE = 5000
REACH_SECONDS = 3


def split(address):
    """(host, port) of HOST, HOST:PORT or [IPV6]:PORT, with or without a scheme; port 0 where there is none."""
    address = address.partition("://")[2] or address
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return address.strip("[]"), 0
    return host.strip("[]"), int(port)


def listeners():
    """(address or None for all addresses, port, inode) of each socket that listens for TCP."""
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            fields = line.split()
            if fields[3] == LISTENING:
                host, port = fields[1].split(":")
                yield _address(host), int(port, 16), fields[9]


def _address(text):
    """The kernel writes addresses as 32-bit words of its own byte order."""
    words = [text[at : at + 8] for at in range(0, len(text), 8)]
    raw = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    ip = ipaddress.ip_address(raw)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return None if ip.is_unspecified else str(ip)


def holder(inode):
    """(process, command line and unit) that has the socket; empty where it cannot be seen."""
    # Not Path.glob: it fails where a process ends meanwhile.
    for link in map(Path, glob.glob("/proc/[0-9]*/fd/*")):  # noqa: PTH207
        try:
            if os.readlink(link) != f"socket:[{inode}]":  # noqa: PTH115 (Path.readlink is newer than 3.8)
                continue
            process = link.parent.parent
            said = [_text(process / "cmdline").replace("\0", " "), _text(process / "cgroup")]
            return f"{_text(process / 'comm').strip()} (process {process.name})", " ".join(said)
        except OSError:
            continue
    return "", ""


def _text(path):
    return path.read_text(errors="replace")[:4096]


def taken(listens):
    """What is in the way, by variable."""
    found = {}
    known = list(listeners())
    for variable, address in sorted(listens.items()):
        host, port = split(address)
        wanted = resolved(host)
        for at, number, inode in known:
            # Without a name for it, nothing is known but its port: take it for the one that is meant.
            if number != port or not (at is None or not wanted or at in wanted):
                continue
            name, more = holder(inode)
            if not any(mark in more for mark in OURS):
                found[variable] = f"port {port} is taken by {name or 'a process that this user may not see'}"
    return found


def resolved(host):
    """Its addresses, none where it cannot be resolved."""
    try:
        return {entry[4][0] for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return set()


def answers(address):
    """Whether somebody listens there."""
    try:
        socket.create_connection(split(address), timeout=REACH_SECONDS).close()
    except (OSError, UnicodeError):
        return False
    return True


def people():
    """Accounts of persons, which must be the same wherever they submit and wherever their work runs."""
    found = {}
    for entry in pwd.getpwall():
        if FIRST_PERSON <= entry.pw_uid <= LAST_PERSON and len(found) < MOST_PEOPLE:
            found[entry.pw_name] = entry.pw_uid
    return found


def main():
    asked = json.loads(sys.argv[1])
    unknown = [name for name in sorted(set(asked["addresses"])) if not resolved(split(name)[0])]
    silent = [address for address in asked["reach"] if not answers(address)]
    print(json.dumps({"taken": taken(asked["listens"]), "unknown": unknown, "silent": silent, "people": people()}))


if __name__ == "__main__":
    main()
