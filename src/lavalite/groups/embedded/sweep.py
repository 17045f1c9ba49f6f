"""What dead processes have left: groups that were theirs, and such as were being made or removed."""

from __future__ import annotations

from lavalite.base.processes import ProcessIdentity
from lavalite.groups.engine.picture import Picture
from lavalite.groups.records import GroupRecord, Holder

MAKING_SECONDS = 600.0
"""Where it cannot be told whether its maker lives, a group that has not been ready for so long never is."""


def dead_holders(picture: Picture) -> list[GroupRecord]:
    """Groups that end with their holder, and whose holder was a process of this machine and lives no more."""
    return [
        picture.groups[name]
        for (boot_id, pid, start_ticks), names in picture.holders().items()
        if not lives(Holder(boot_id=boot_id, pid=pid, start_ticks=start_ticks))
        for name in names
    ]


def orphans(picture: Picture, now: float, me: Holder, *, on_one_machine: bool) -> list[GroupRecord]:
    """Groups that are not ready, and that nobody makes or removes any more; those that are `me`'s to make or remove
    too, who knows what it is about."""
    found = []
    for name in picture.unready():
        record = picture.groups[name]
        # Elsewhere it cannot be told: a pod on the same node has the same boot, and processes of its own.
        is_dead = not lives(record.holder) if on_one_machine else now - record.unready_since > MAKING_SECONDS
        if record.holder == me or is_dead:
            found.append(record)
    return found


def lives(holder: Holder) -> bool:
    """Whether it is a process of this machine that runs. One of another boot is dead."""
    if holder.pid <= 0:
        return False
    identity = ProcessIdentity(pid=holder.pid, start_ticks=holder.start_ticks, boot_id=holder.boot_id)
    return identity.is_alive()
