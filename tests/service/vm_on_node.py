"""python vm_on_node.py make|remove|check STATE SETTINGS ORDER: one step of the role `vm`, in a process of its own.

So each step is also that of an sbatchd that has just come back. SETTINGS and ORDER are JSON. What comes of it is the
output; an error is the last line, and exit status 1.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from pathlib import Path

from lavalite.base.clock import SystemClock
from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.attach.roles import Made, NotYetError
from lavalite.sbatchd.vm.role import VmRole
from lavalite.sbatchd.vm.runners import ChildRunner
from lavalite.sbatchd.vm.settings import VmSettings
from lavalite.wire.frames import PartOrder


async def made(role: VmRole, order: PartOrder) -> Made:
    """As whoever orders asks: again, until it is there."""
    while True:
        try:
            return await role.make(order)
        except NotYetError:
            await asyncio.sleep(0.2)


async def main(verb: str, state: str, settings: str, order: str) -> int:
    role = VmRole(Path(state), VmSettings.model_validate_json(settings), SystemClock(), ChildRunner())
    ordered = PartOrder.model_validate_json(order)
    try:
        if verb == "make":
            print(json.dumps(dataclasses.asdict(await made(role, ordered))))
        elif verb == "remove":
            await role.remove(ordered)
        else:
            print(await role.check(ordered, Made()))
    except LavaLiteError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
