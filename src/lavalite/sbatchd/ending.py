"""Ending running attempts, and what watches over them: for who wants nothing left on a machine.

    lavalite-end-attempts STATE_PATH…        or python -m lavalite.sbatchd.ending

sbatchd itself never does this: attempts outlive it. To the keeper it speaks JSON, an object a line; of attempts that
are units, systemd.ending knows.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

from lavalite.base.clock import SystemClock
from lavalite.base.errors import LavaLiteError
from lavalite.base.processes import ProcessIdentity
from lavalite.sbatchd.keeper.files import SOCKET_NAME

CONTACT_NAME = "contact"
"""The systemd executor's first file: who has it has been used."""
ANSWER_SECONDS = 10.0
GRACE_SECONDS = 10.0
_CREDENTIALS = struct.Struct("3i")


class KeeperLine:
    """A connection to a keeper. Use it in a `with`."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where nobody listens there."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_SECONDS)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self._asked = 0
        raw = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.process = ProcessIdentity.of(_CREDENTIALS.unpack(raw)[0])

    def __enter__(self) -> KeeperLine:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Ask, and pass over what it tells meanwhile. Raises OSError, or LavaLiteError where it falls silent."""
        self._asked += 1
        self._socket.sendall(json.dumps({"op": op, "n": self._asked, **fields}).encode() + b"\n")
        while line := self._lines.readline():
            answer: dict[str, Any] = json.loads(line)
            if answer.get("reply") == self._asked:
                return answer
        raise LavaLiteError("the keeper of running attempts closed the connection", code="keeper_lost")

    def running(self) -> list[str]:
        """Ids of attempts that have not ended."""
        return [attempt["id"] for attempt in self.ask("list")["attempts"] if attempt["state"] != "ended"]

    def wait(self, seconds: float) -> None:
        """Until the keeper tells something, or the time is over."""
        select.select([self._socket], [], [], seconds)


def running_attempts(path: Path) -> list[str]:
    """Ids of attempts that run; none where no keeper answers."""
    try:
        with KeeperLine(path) as keeper:
            return keeper.running()
    except OSError:
        return []


def end_keeper(path: Path, *, grace_seconds: float, now: Any) -> None:
    """Ask each attempt to end, kill what is left after the grace, and wait until the keeper is gone.

    `now` is a monotonic clock in seconds. Raises LavaLiteError where the keeper does not end.
    """
    try:
        with KeeperLine(path) as keeper:
            for attempt in keeper.running():
                keeper.ask(
                    "signal",
                    id=attempt,
                    signal=int(signal.SIGTERM),
                    ending=True,
                    grace_seconds=grace_seconds,
                    reason="stop",
                )
            until = now() + grace_seconds + 2.0
            while keeper.running() and now() < until:
                keeper.wait(0.2)
            keeper.ask("shutdown", force=True)
            process = keeper.process
    except OSError:
        return
    if process is not None and not process.wait_until_gone(ANSWER_SECONDS):
        process.end(ANSWER_SECONDS)


def end_attempts(folder: Path) -> int:
    """End all that runs of an sbatchd's state folder; the number of attempts. Raises LavaLiteError."""
    ended = 0
    for path in sorted(folder.rglob(SOCKET_NAME)):
        ended += len(running_attempts(path))
        end_keeper(path, grace_seconds=GRACE_SECONDS, now=SystemClock().monotonic)
    units = folder / "systemd"
    if (units / CONTACT_NAME).exists():
        # Only where attempts are units: elsewhere what speaks to systemd need not be installed.
        from lavalite.sbatchd.systemd.ending import end_units

        ended += end_units(units, grace_seconds=GRACE_SECONDS)
    return ended


def main(arguments: list[str] | None = None) -> int:
    """End what runs of each sbatchd state folder named. Prints how many attempts it ended."""
    try:
        ended = sum(end_attempts(Path(folder)) for folder in (sys.argv[1:] if arguments is None else arguments))
    except LavaLiteError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{ended} attempts ended")
    return 0


if __name__ == "__main__":
    sys.exit(main())
