"""A scheduler that schedules nothing: it says Ready to its LIM and ends itself by its deadline.

Prints one line for each thing that happens, as `pid event detail`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from lavalite.base.clock import SystemClock
from lavalite.base.errors import LavaLiteError
from lavalite.wire.connection import Connection
from lavalite.wire.frames import Deadline, Hello, Leader, Ready, WhoLeads


def say(event: str, detail: object = "") -> None:
    print(os.getpid(), event, detail, flush=True)


async def serve(socket: str, node: str) -> None:
    clock = SystemClock()
    hello = Hello(software_version="fake", cluster="test", node=node, role="local")
    connection, _ = await Connection.open(socket, hello)
    await connection.send(WhoLeads())
    leader = await connection.receive()
    assert isinstance(leader, Leader) and leader.mine and leader.epoch and leader.deadline, leader
    ready = Ready(
        epoch=leader.epoch, version="fake", pid=os.getpid(), mbatchd_address="127.0.0.1:1", api_url="http://fake"
    )
    await connection.send(ready)
    say("ready", leader.epoch)
    deadline = leader.deadline
    while (left := deadline - clock.boottime()) > 0:
        try:
            async with asyncio.timeout(left):
                frame = await connection.receive()
        except TimeoutError:
            continue
        except LavaLiteError:
            await asyncio.sleep(max(0.0, deadline - clock.boottime()))
            continue
        assert isinstance(frame, Deadline), frame
        deadline = frame.deadline
        say("deadline", deadline)
    say("over", "the deadline has passed")


if __name__ == "__main__":
    if "--stubborn" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asyncio.run(serve(sys.argv[1], sys.argv[2]))
