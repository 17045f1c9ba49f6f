"""A planner in seven steps: prefill and decode, scaled from 1 to 3 and back, on whatever there is.

python planner.py WHERE FOLDER

WHERE is as for lavalite.groups.connect: `local:PATH` for this machine without daemons, `up` for a running system,
`kubernetes:NAMESPACE`. A running system starts, restarts and ends the components; without one the planner starts
them itself, in the environment of their groups. FOLDER is where the components write what they did.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from lavalite.base.errors import LavaLiteError
from lavalite.groups import ComputeGroup, ComputeGroupManager, connect

COMPONENTS = {
    "prefill": {"gpu": 1, "cpu": 0.1},
    "decode": {"gpu": 1, "cpu": 0.1},
}
COMPONENT = Path(__file__).with_name("component.py")


class Processes:
    """Components' processes, where no running system has them: one for each group."""

    def __init__(self) -> None:
        self._of: dict[str, subprocess.Popen[bytes]] = {}

    def follow(self, name: str, folder: str, groups: list[ComputeGroup]) -> None:
        for group in groups:
            if group.id not in self._of:
                environment = {**os.environ, **group.environment}
                self._of[group.id] = subprocess.Popen([sys.executable, COMPONENT, name, folder], env=environment)
        for group_id in [each for each, process in self._of.items() if process.poll() is not None]:
            del self._of[group_id]

    def end(self) -> None:
        """Whatever still runs is asked to end, and waited for: a planner that fails leaves nobody behind."""
        for process in self._of.values():
            process.terminate()
        for process in self._of.values():
            process.wait()


async def plan(manager: ComputeGroupManager, folder: str, processes: Processes) -> None:
    async def scale(name: str, replicas: int) -> list[ComputeGroup]:
        groups = await manager.scale_component(name, replicas)
        if not manager.provider.runs_components:
            processes.follow(name, folder, groups)
        return groups

    # 1. Components register with what they need.
    for name, requirements in COMPONENTS.items():
        command = [sys.executable, str(COMPONENT), name, folder]
        await manager.register_component(name, requirements, command=command, drain_seconds=60)
        print(f"1 {name} registered", flush=True)

    # 2. What there is.
    for node in await manager.list_compute_nodes():
        print(f"2 {len(node.resources['gpus'])} GPUs on {node.id}, {node.free['gpu_milli'] // 1000} free", flush=True)

    # 3 to 5. A group that suits each is found, allocated to it, and the state says so.
    for name in COMPONENTS:
        [group] = await scale(name, 1)
        gpus = ", ".join(gpu["id"] for gpu in group.resources["gpus"])
        print(f"3 {name} fits on {group.node_id}", flush=True)
        print(f"4 {name} has {gpus}", flush=True)
        again = await manager.get_compute_group(group.id)
        print(f"5 {group.id} is {again.allocation_state}, of {again.component}", flush=True)

    # 6. More requests come in: decode grows. Whoever plans looks at use and health here.
    for replicas in (2, 3):
        groups = await scale("decode", replicas)
        sick = [group.id for group in groups if group.allocation_state == "failed"]
        print(f"6 decode has {len(groups)} groups, {len(sick)} of them sick", flush=True)
    await everybody_serves(folder, {"prefill": 1, "decode": 3})
    await scale("decode", 1)
    print("6 decode has 1 group again", flush=True)

    # 7. Nothing is needed any more: each is asked to end, finishes, and what it held is free.
    for name in COMPONENTS:
        await scale(name, 0)
    summary = await manager.get_allocation_summary()
    gpus = summary["resources"]["gpu_milli"]
    print(f"7 {gpus['free'] // 1000} of {gpus['capacity'] // 1000} GPUs are free", flush=True)


async def everybody_serves(folder: str, wanted: dict[str, int]) -> None:
    """So many processes of each have said so."""
    async with asyncio.timeout(60):
        while any(len(list(Path(folder).glob(f"{name}.*"))) < count for name, count in wanted.items()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # another process is waited for


async def main(where: str, folder: str) -> int:
    Path(folder).mkdir(exist_ok=True)
    processes = Processes()
    try:
        async with await connect(where) as manager:
            await plan(manager, folder, processes)
    except LavaLiteError as error:  # as where there are too few GPUs
        print(error, file=sys.stderr)
        return error.exit_code
    finally:
        processes.end()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
