"""python -m lavalite.sbatchd.vm.console NAME: this node's terminal becomes the serial console of a virtual machine.

Ctrl-] leaves. On the node, as root.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import sys
import termios
import tty
from collections.abc import Sequence
from pathlib import Path

from lavalite.base.errors import InputError, LavaLiteError
from lavalite.sbatchd.vm.command import CONSOLE
from lavalite.sbatchd.vm.qmp import connect_unix

LEAVE = b"\x1d"
STATE = Path("/var/lib/lavalite/sbatchd")
CHUNK_BYTES = 4096


def console_of(state_path: Path, host: str) -> Path:
    """The socket of the host's latest incarnation here. Raises InputError."""
    found = []
    for folder in (state_path / "vms").glob("*-*"):
        name, _, incarnation = folder.name.rpartition("-")
        if name == host and incarnation.isdecimal() and (folder / CONSOLE).is_socket():
            found.append((int(incarnation), folder / CONSOLE))
    if not found:
        hint = f"See {state_path / 'vms'} on its anchor, or name the daemon's state_path by --state."
        raise InputError(f"no virtual machine {host} runs on this node", hint=hint)
    return max(found)[1]


def bridge(console: socket.socket, source: int, target: int) -> None:
    """Carry bytes both ways until either end closes, or Ctrl-] is typed. Descriptors of a terminal or a pipe."""
    console.setblocking(True)
    while True:
        ready, _, _ = select.select([console.fileno(), source], [], [])
        if console.fileno() in ready:
            if not (said := console.recv(CHUNK_BYTES)):
                return
            os.write(target, said)
        if source in ready:
            typed = os.read(source, CHUNK_BYTES)
            before, left, _ = typed.partition(LEAVE)
            console.sendall(before)
            if left or not typed:
                return


def attach(path: Path) -> None:
    """This process's terminal to the console at `path`, and as it was afterwards. Raises OSError."""
    source, target = sys.stdin.fileno(), sys.stdout.fileno()
    with connect_unix(path) as console:
        before = termios.tcgetattr(source) if os.isatty(source) else None
        try:
            if before:
                tty.setraw(source)
            bridge(console, source, target)
        finally:
            if before:
                termios.tcsetattr(source, termios.TCSADRAIN, before)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lavalite.sbatchd.vm.console", description=__doc__)
    parser.add_argument("host", help="the logical host's name")
    parser.add_argument("--state", type=Path, default=STATE, help="sbatchd's state_path (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        attach(console_of(options.state, options.host))
    except LavaLiteError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"the console cannot be reached: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
