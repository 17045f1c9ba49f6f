"""Attached parts on a host, as sbatchd has them, for a test that is the leader: orders on stdin, pictures on stdout.

    python3 attach_on_host.py STATE ADDRESS CHECK_SECONDS

A line of stdin is a list of PartOrder, a line of stdout a list of PartState, both in JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import structlog

from lavalite.base.clock import SystemClock
from lavalite.sbatchd.attach.attachments import Attachments
from lavalite.sbatchd.attach.parts import PartSettings, make_roles
from lavalite.sbatchd.attach.roles import PartRole
from lavalite.sbatchd.attach.runner import SystemdRunner
from lavalite.wire.frames import PartOrder, PartState


def tell(picture: list[PartState]) -> None:
    print(json.dumps([state.model_dump() for state in picture]), flush=True)


async def main(state: Path, address: str, check_seconds: float) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    clock, roles = SystemClock(), dict[str, PartRole]()
    attachments = Attachments(state / "parts", roles, clock, ports=range(10900, 10910), check_seconds=check_seconds)
    runner = SystemdRunner(state / "parts", clock)
    roles.update(
        make_roles(runner, PartSettings(state, state / "storage"), clock, attachments.ports, attachments.beside)
    )
    attachments.tell = tell
    attachments.listen_at(address)
    run = asyncio.create_task(attachments.run())
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    attachments.show()
    while line := await reader.readline():
        attachments.order([PartOrder.model_validate(each) for each in json.loads(line)])
    run.cancel()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
