"""What a task that holds GPUs got: how near they are to each other, and cores near to them.

Cores are counted, and not given out by name. A task stays on those of the NUMA nodes that its GPUs are on if all that
hold GPUs there ask for no more cores than there are; else it may run on any, since it would wait for some while
others idle.
"""

from __future__ import annotations

from lavalite.control.state import ClusterState
from lavalite.control.tasks import TaskRun
from lavalite.model.resources import CPU, GPU, WHOLE, Device
from lavalite.placement.closeness import near_of, shared_level


def gpus_of(state: ClusterState, run: TaskRun) -> list[Device]:
    """The GPUs that the task holds, as its node tells of them; one that has vanished is left out."""
    held = [d for share in state.book.shares(run.key.owner) if share.kind == GPU for d in share.devices]
    node = state.nodes.get(run.node)
    known = {device.id: device for device in node.offer.devices(GPU)} if held and node is not None else {}
    return [known[device] for device in held if device in known]


def level_of(state: ClusterState, run: TaskRun) -> str:
    """What all GPUs of the task have in common; empty if nothing that is known, or fewer than two are held."""
    gpus = gpus_of(state, run)
    return shared_level([near_of(device) for device in gpus]) if len(gpus) > 1 else ""


def cores_near(state: ClusterState, run: TaskRun, cores: list[str]) -> list[str]:
    """Those of the cores that are near to the task's GPUs; empty where it may run on any."""
    nodes = _numa_nodes(state, run)
    if not nodes:
        return []
    numa = {device.id: device.numa_node for device in state.nodes[run.node].offer.devices(CPU)}
    near = [core for core in cores if numa.get(core, -1) in nodes]
    asked = sum(
        state.jobs[other.key.job].spec.at(other.position).request.cpu_milli
        for other in state.nodes[run.node].runs.values()
        if not nodes.isdisjoint(_numa_nodes(state, other))
    )
    return near if len(near) < len(cores) and asked <= WHOLE * len(near) else []


def _numa_nodes(state: ClusterState, run: TaskRun) -> set[int]:
    return {device.numa_node for device in gpus_of(state, run) if device.numa_node >= 0}
