"""A script: the last steps before QEMU. `begin.py FOLDER/pid`; what it does is in FOLDER/launch.json.

It opens a tap, connects it to the bridge, becomes the user that QEMU is to run as, and turns into QEMU. Nothing has
to be cleaned up ever: the kernel takes the tap away when the last process that has it open is gone. Only the standard
library, so that it starts at once; it runs outside sbatchd's confinement, since sbatchd itself may touch no network.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import json
import os
import pwd
import socket
import struct
import sys
from pathlib import Path

TAP_FD = 3
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
SIOCGIFINDEX, SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCBRADDIF = 0x8933, 0x8913, 0x8914, 0x89A2
IFF_UP = 0x1


def open_tap(name: str, bridge: str) -> int:
    """A descriptor of a new tap on the bridge. Raises OSError."""
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH14x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        asked = struct.pack("16s16x", name.encode())
        (index,) = struct.unpack_from("i", fcntl.ioctl(control, SIOCGIFINDEX, asked), 16)
        fcntl.ioctl(control, SIOCBRADDIF, struct.pack("16si12x", bridge.encode(), index))
        (flags,) = struct.unpack_from("H", fcntl.ioctl(control, SIOCGIFFLAGS, asked), 16)
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", name.encode(), flags | IFF_UP))
    return tap


def become(user: str) -> None:
    """Raises KeyError for nobody, OSError. May use KVM where a group of that name may."""
    if not user:
        return
    entry = pwd.getpwnam(user)
    groups = [entry.pw_gid]
    with contextlib.suppress(KeyError):
        groups.append(grp.getgrnam("kvm").gr_gid)
    os.setgroups(groups)
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)


def main() -> None:
    folder = Path(sys.argv[1]).parent
    launch = json.loads((folder / "launch.json").read_text(encoding="utf-8"))
    os.chdir(folder)
    os.umask(0o077)
    try:
        tap = open_tap(launch["tap"], launch["bridge"])
    except OSError as error:
        sys.exit(f"the tap {launch['tap']} cannot be connected to the bridge {launch['bridge']}: {error.strerror}")
    if tap == TAP_FD:
        os.set_inheritable(tap, True)
    else:
        os.dup2(tap, TAP_FD, inheritable=True)
        os.close(tap)
    try:
        become(launch["user"])
        os.execv(launch["command"][0], launch["command"])  # noqa: S606
    except KeyError:
        sys.exit(f"there is no user {launch['user']}")
    except OSError as error:
        sys.exit(f"{launch['command'][0]}: {error.strerror}")


if __name__ == "__main__":
    main()
