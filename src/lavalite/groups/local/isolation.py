"""What keeps the processes of a group to what the group has: their environment.

Whole GPUs and MIG instances are seen by CUDA_VISIBLE_DEVICES, by UUID, since numbers change. A part of a GPU by MPS
is held by the limits of the MPS server that the processes are sent to. A part with isolation `none` is held by
nothing: who asks for that trusts its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from lavalite.groups.records import GroupRecord
from lavalite.model.resources import GPU, WHOLE, Device

MARKER = "LAVALITE_COMPUTE_GROUP"
"""In the environment of each process of a group: the group's id."""
PERCENT = 100


def gpus_of(record: GroupRecord) -> list[str]:
    return [device for share in record.shares if share.kind == GPU for device in share.devices]


def environment(
    record: GroupRecord, devices: Mapping[str, Device], mps_directory: Callable[[str], Path]
) -> dict[str, str]:
    """What a process in the group needs in its environment.

    `devices` are the node's GPUs, by id; `mps_directory` says where the MPS server of a GPU listens.
    """
    seen = ",".join(record.instances or gpus_of(record))
    # Set although there is none: a group without a GPU shall see none.
    found = {MARKER: record.id, "LAVALITE_GPUS": seen, "CUDA_VISIBLE_DEVICES": seen}
    if record.isolation == "mps":
        found |= _mps(record, devices, mps_directory)
    return found


def _mps(record: GroupRecord, devices: Mapping[str, Device], mps_directory: Callable[[str], Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    for share in record.shares:
        if share.kind == GPU and share.devices:
            (gpu,) = share.devices  # more than one are given whole
            found["CUDA_MPS_PIPE_DIRECTORY"] = str(mps_directory(gpu))
            found["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(max(1, share.amount * PERCENT // WHOLE))
            if gpu in devices:
                mebibytes = (devices[gpu].memory_bytes * share.amount // WHOLE) >> 20
                found["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = f"0={mebibytes}M"  # 0: the only one that it sees
    return found
