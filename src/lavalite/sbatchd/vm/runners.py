"""Who owns QEMU, so that it outlives sbatchd: a unit of the machine's systemd (units.py), or nobody (here)."""

from __future__ import annotations

import asyncio
import os
import pwd
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lavalite.base.errors import LavaLiteError
from lavalite.base.processes import ProcessIdentity, started_with
from lavalite.sbatchd.vm import begin
from lavalite.sbatchd.vm.command import PID
from lavalite.sbatchd.vm.files import LOG, last_line
from lavalite.sbatchd.vm.wanted import VmName, Wanted

END_SECONDS = 5.0


@dataclass(slots=True, frozen=True)
class Place:
    """A virtual machine's name and folder."""

    name: VmName
    folder: Path


class Runner(Protocol):
    async def start(self, place: Place, wanted: Wanted) -> None:
        """Start what the folder says. Raises LavaLiteError."""
        ...

    async def limit(self, place: Place, wanted: Wanted) -> None:
        """Change what QEMU may have of the node."""
        ...

    async def runs(self, place: Place) -> bool: ...

    async def how_ended(self, place: Place) -> str:
        """Why it does not run, as far as anybody knows: `killed by signal 9`."""
        ...

    async def kill(self, place: Place) -> None:
        """No error if it does not run. Returns when it is gone. Raises LavaLiteError."""
        ...

    async def close(self) -> None: ...


def begin_command(place: Place) -> list[str]:
    """A process that has the last of these words is the machine's, be it before it has become QEMU or after."""
    return [sys.executable, "-I", "-S", begin.__file__, str(place.folder / PID)]


class ChildRunner:
    """QEMU as a process in a session of its own, found again by a word of its command line that no other has."""

    def __init__(self, user: str = "") -> None:
        self._user = user
        self._children: dict[VmName, subprocess.Popen[bytes]] = {}

    async def start(self, place: Place, wanted: Wanted) -> None:
        def spawn() -> subprocess.Popen[bytes]:
            with (place.folder / LOG).open("ab") as log:
                return subprocess.Popen(
                    begin_command(place), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )

        try:
            self._children[place.name] = await asyncio.to_thread(spawn)
        except OSError as error:
            raise LavaLiteError(f"{sys.executable} cannot be started ({error.strerror})") from None

    async def limit(self, place: Place, wanted: Wanted) -> None:
        """There is nobody who would limit it."""

    async def runs(self, place: Place) -> bool:
        return bool(await asyncio.to_thread(self._found, place))

    async def how_ended(self, place: Place) -> str:
        child = self._children.get(place.name)
        code = child.poll() if child else None
        if code is not None and code < 0:
            return f"killed by signal {-code}"
        return last_line(place.folder / LOG) if code else ""

    async def kill(self, place: Place) -> None:
        for process in await asyncio.to_thread(self._found, place):
            await asyncio.to_thread(process.end, END_SECONDS)
        if child := self._children.pop(place.name, None):
            await asyncio.to_thread(child.wait, END_SECONDS)

    async def close(self) -> None:
        self._children.clear()

    def _found(self, place: Place) -> list[ProcessIdentity]:
        if child := self._children.get(place.name):
            child.poll()
        uids = {os.geteuid()}
        if self._user:
            uids.add(pwd.getpwnam(self._user).pw_uid)
        return started_with(str(place.folder / PID), uids)
