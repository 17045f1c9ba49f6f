"""Addresses that daemons listen on and connect to: `HOST:PORT`, `[IPV6]:PORT` or `unix:/path`."""

from __future__ import annotations

import errno
import ipaddress
import os
from dataclasses import dataclass

from lavalite.base.errors import InputError, LavaLiteError

UNIX_PREFIX = "unix:"
UNIX_PATH_BYTES = 107
"""What Linux allows for the path of a Unix socket (sun_path less its closing zero)."""


@dataclass(slots=True, frozen=True)
class Address:
    """Either `path` (a Unix socket) or `host` and `port`."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"{UNIX_PREFIX}{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether only processes of this machine can reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            ip = ipaddress.ip_address(self.host)
        except ValueError:
            return False  # a name may resolve to anything, tomorrow if not today
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
        return (mapped or ip).is_loopback


def parse_address(text: str, field: str = "") -> Address:
    """Read `HOST:PORT`, `[IPV6]:PORT` or `unix:/path`. Raises InputError naming `field`."""

    def wrong(message: str, hint: str) -> InputError:
        return InputError(f"{text!r} {message}", code="bad_address", field=field, hint=hint)

    if text.startswith(UNIX_PREFIX):
        path = text.removeprefix(UNIX_PREFIX)
        if not path.startswith("/") or "\0" in path:
            raise wrong("is no absolute path of a Unix socket", "Write it like unix:/run/lavalite/lim.sock.")
        if len(os.fsencode(path)) > UNIX_PATH_BYTES:
            hint = f"At most {UNIX_PATH_BYTES} bytes are allowed: choose a shorter directory."
            raise wrong("is too long for the path of a Unix socket", hint)
        return Address(path=path)
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise wrong("is an IPv6 address without brackets", "Write it like [::1]:7869.")
    if not colon or not host or any(c.isspace() or c == "\0" for c in host):
        raise wrong("is not an address", "Write HOST:PORT, like 127.0.0.1:7869 or [::1]:7869.")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise wrong("does not end in a port", "Write HOST:PORT with a port from 0 to 65535.")
    return Address(host=host, port=int(port))


def check_listener(address: str, tls: bool, insecure: bool) -> None:
    """Raise InputError if other machines could reach this listener, it has no TLS, and nobody said `insecure`."""
    if tls or insecure or parse_address(address, "listen").local:
        return
    raise InputError(
        f"{address} can be reached from other machines, and there is no TLS",
        code="insecure_listener",
        field="listen",
        hint="Configure tls, listen on 127.0.0.1, or set insecure: true if the network itself is trusted.",
    )


def listen_error(address: Address, error: OSError) -> LavaLiteError:
    """The sentence for a listener that could not be opened."""
    if error.errno == errno.EADDRINUSE:
        hint = f"Stop the process that holds it (ss -ltnp 'sport = :{address.port}'), or set another port."
        return LavaLiteError(f"{address} is already in use", code="address_in_use", field="listen", hint=hint)
    reason = error.strerror or str(error)
    hint = "Set an address of this machine and a port that this user may open (1024 and above)."
    return LavaLiteError(f"cannot listen on {address}: {reason}", code="cannot_listen", field="listen", hint=hint)
