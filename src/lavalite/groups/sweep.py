"""What dead processes have left: groups that were theirs, and such as were being made or removed."""

from __future__ import annotations

from lavalite.base.processes import ProcessIdentity, current_boot_id
from lavalite.groups.engine.picture import Picture
from lavalite.groups.records import GroupRecord, Holder

MAKING_SECONDS = 600.0
"""Where it cannot be told whether its maker lives, a group that is not ready so long after it was made never is."""


def dead_holders(picture: Picture) -> list[GroupRecord]:
    """Groups that end with their holder, and whose holder was a process of this machine and lives no more."""
    return [
        picture.groups[name]
        for (boot_id, pid, start_ticks), names in picture.holders().items()
        if not lives(Holder(boot_id=boot_id, pid=pid, start_ticks=start_ticks))
        for name in names
    ]


def orphans(picture: Picture, now: float, *, on_one_machine: bool) -> list[GroupRecord]:
    """Groups that are not ready, and that nobody makes or removes any more."""
    found = []
    for name in picture.unready():
        record = picture.groups[name]
        here = on_one_machine or record.holder.boot_id == current_boot_id()
        if (here and not lives(record.holder)) or (not here and now - record.made_at > MAKING_SECONDS):
            found.append(record)
    return found


def lives(holder: Holder) -> bool:
    """Whether it is a process of this machine that runs. One of another boot is dead."""
    if holder.pid <= 0:
        return False
    identity = ProcessIdentity(pid=holder.pid, start_ticks=holder.start_ticks, boot_id=holder.boot_id)
    return identity.is_alive()
